"""Reward models in the layouts that other tools read: a peft adapter with its head, or a sequence classifier.

Other engines find a text's last token by the pad token's id, so a pad token that occurs in texts (mostly because it is
the end-of-text token) would move the reward. It is replaced by one that never occurs, and the report says so.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from grmlight.data.padding import doubled_bos, safe_pad
from grmlight.data.prepare import prepare
from grmlight.distill import Agreement, distill
from grmlight.export import Opened, check_out, export, finished_model, open_checkpoint, open_folder, write_options
from grmlight.models import RewardModel
from grmlight.models.adapters import ADAPTER_CONFIG, save_adapter
from grmlight.models.classifier import classifier_config, is_standard, save_classifier
from grmlight.training.resume import find_checkpoint

Format = Literal["grm", "adapter", "classifier"]


def convert(source: Path, out: Path, layout: Format = "grm", pairs: str | None = None) -> tuple[Path, list[str]]:
    """Write a reward model in one of the layouts.

    Args:
        source: a run directory, a model folder of any layout, a checkpoint file, or a folder of shards.
        out: the folder to write.
        layout: "grm" (adapters merged), "adapter" (not merged), or "classifier" (merged).
        pairs: for a classifier, distill an MLP head into a linear one on these pairs.

    Returns:
        What was exported, and what there is to say about it.

    Errors: ValueError in one line for what holds no model, or cannot be written so.
    """
    if pairs is not None and layout != "classifier":
        raise ValueError(f"only a classifier is distilled, not --format {layout}; leave out --distill")
    if layout == "grm":
        return export(source, out), []
    check_out(source, out)
    exported, opened = _open(source, layout)
    agreement = None
    if pairs is not None:
        agreement = _distilled(opened, pairs, exported)
    notes = write_for_others(opened, out, layout, {} if agreement is None else {"distilled": agreement.entries()})
    return exported, [*([] if agreement is None else [str(agreement)]), *notes]


def write_for_others(opened: Opened, out: Path, layout: Format, more: dict[str, Any]) -> list[str]:
    """Write an adapter or a classifier with a pad token that never occurs; what there is to say about it.

    Errors: see `convert`.
    """
    model, tokenizer = opened.single, copy.deepcopy(opened.tokenizer)
    pad, notes = _set_pad(model, tokenizer)
    save: Callable[..., None] = save_adapter if layout == "adapter" else save_classifier
    save(model, out, tokenizer, pad)
    write_options(out, opened.options, **more)
    return [*notes, *_notes(model, tokenizer, pad, layout)]


def _open(source: Path, layout: Format) -> tuple[Path, Opened]:
    folder = finished_model(source)
    merged = folder is not None and not (folder / ADAPTER_CONFIG).exists()
    if folder is None or (layout == "adapter" and merged and folder != source):
        # A run's `model/` has its adapters merged; its checkpoints have not.
        checkpoint = find_checkpoint(str(source), training=False)
        return checkpoint, open_checkpoint(checkpoint)
    return folder, open_folder(folder)


def _distilled(opened: Opened, pairs: str, exported: Path) -> Agreement:
    if opened.single.head_config.kind == "linear":
        raise ValueError(f"{exported}: its head is linear already; leave out --distill")
    with tempfile.TemporaryDirectory() as folder:
        opened.tokenizer.save_pretrained(folder)
        # What chose among the training pairs is not meant for these.
        whole = {"stride": 1, "offset": 0, "limit": None, "flip": 0.0}
        return distill(opened.single, prepare(pairs, folder, dataclasses.replace(opened.options, **whole)))


def _set_pad(model: RewardModel, tokenizer: Any) -> tuple[int, list[str]]:
    """Give a tokenizer a pad token that other engines can tell from text."""
    if model.skipped is not None:
        # This model's rewards are read before that token, as other engines do with the same pad token.
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.skipped)
        return model.skipped, []
    ends = model.lm.config.get_text_config(decoder=True).eos_token_id
    pad = safe_pad(tokenizer, ends if isinstance(ends, list) else [] if ends is None else [ends])
    if not pad.fault:
        return pad.id, []
    if pad.is_new:
        tokenizer.add_special_tokens({"pad_token": pad.token})
    tokenizer.pad_token = pad.token
    where = "added" if pad.is_new else "a reserved token"
    return pad.id, [f"pad token: {pad.token} ({where}), because {pad.fault} and engines would read rewards elsewhere"]


def _notes(model: RewardModel, tokenizer: Any, pad: int, layout: Format) -> list[str]:
    notes = []
    if model.head_config.kind == "linear" and is_standard(classifier_config(model, pad)):
        bias = (float(model.head.state_dict()["summary.bias"]) - float(model.reward_shift)) / float(model.reward_scale)
        if bias:
            notes.append(
                f"bias: classifiers have none, so every score is lower by {bias:.6g} than the model's (vhead_bias in "
                "config.json); no preference changes"
            )
    elif layout == "adapter":
        notes.append("head: in v_head.safetensors, beside the adapter of a causal LM; grmlight reads both")
    else:
        notes.append("head: read by modeling_grm.py in the folder, with trust_remote_code=True")
    if doubled_bos(tokenizer):
        notes.append(
            f"{tokenizer.bos_token}: engines that encode a rendered chat with special tokens (reward-bench) put it "
            "twice; their scores equal ours without it, or with paper_text"
        )
    return notes
