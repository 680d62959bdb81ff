"""LoRA adapters on disk: peft's folders, in and out, and those of the GRM authors' trainer, in."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from grmlight.data.names import resolve
from grmlight.models.backbone import HEAD_PREFIX, check_loaded, embedding_rows
from grmlight.models.checkpoint import final_head, head_entries, publish_model
from grmlight.models.classifier import HEAD_BIAS, classifier_config, is_standard
from grmlight.models.lora import LoraOptions
from grmlight.models.reward_model import RewardModel
from grmlight.models.weights import ADAPTER_FILES, read_tensors

ADAPTER_CONFIG = "adapter_config.json"

HEAD_FILE = "v_head.safetensors"
"""The reward head beside a peft adapter that has no place for it."""

HEAD_NAMES = ("score", "value_head")
"""What classifiers call their last layer: transformers and TRL, and OpenRLHF."""

_WRAPPERS = re.compile(r"^(pretrained_model\.|base_model\.model\.)*")
_MATRIX = re.compile(r"\.(lora_[AB])(\.default)?\.weight$")

_UNKNOWN = (
    *("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform", "layer_replication"),
    *("exclude_modules", "target_parameters", "trainable_token_indices", "lora_bias", "megatron_config"),
)
"""Settings of peft that `LoraOptions` cannot say."""


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """A folder's adapter_config.json. ValueError if it cannot be read."""
    path = folder / ADAPTER_CONFIG
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return dict(entries)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy the adapter again") from error


def lora_options(entries: dict[str, Any], folder: Path) -> LoraOptions:
    """The adapters that an adapter_config.json describes. ValueError names a setting that grmlight does not have."""
    used = [name for name in _UNKNOWN if entries.get(name)]
    if entries.get("bias", "none") != "none":
        used.append("bias")
    others = set(entries.get("modules_to_save") or ()) - {*HEAD_NAMES, "v_head", "classifier"}
    if others:
        used.append(f"modules_to_save {sorted(others)}")
    targets = entries.get("target_modules")
    if isinstance(targets, str) or not targets:
        used.append(f"target_modules {targets!r}")
    if entries.get("peft_type") != "LORA":
        used.append(f"peft_type {entries.get('peft_type')!r}")
    used += [f"{name} {entries.get(name)!r}" for name in ("r", "lora_alpha") if not isinstance(entries.get(name), int)]
    if used:
        raise ValueError(
            f"{folder}: an adapter with {', '.join(used)} is not read; merge it into its base model with peft and give "
            "the merged folder"
        )
    assert targets is not None
    return LoraOptions(
        r=entries["r"],
        alpha=entries["lora_alpha"],
        dropout=entries.get("lora_dropout", 0.0),
        targets=tuple(sorted(targets)),
    )


def adapter_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A folder's adapter matrices by `PATH.lora_A`, and everything else by its name without wrappers."""
    matrices, rest = {}, {}
    for name, tensor in read_tensors(folder, files=ADAPTER_FILES).items():
        plain = _WRAPPERS.sub("", name).replace(".modules_to_save.default.", ".")
        if _MATRIX.search(plain):
            matrices[_MATRIX.sub(r".\1", plain)] = tensor
        else:
            rest[plain] = tensor
    if not matrices:
        raise ValueError(f"{folder}: its weights hold no adapter (no lora_A and lora_B); copy it again")
    return matrices, rest


def load_adapter(model: RewardModel, matrices: dict[str, Tensor], what: str) -> None:
    """Put matrices into a model's adapters. A ValueError names those that do not fit: they are of another backbone."""
    expected = {
        _MATRIX.sub(r".\1", _WRAPPERS.sub("", name)): parameter
        for name, parameter in model.backbone.named_parameters()
        if _MATRIX.search(name)
    }
    shared = expected.keys() & matrices.keys()
    misshapen = {name for name in shared if expected[name].shape != matrices[name].shape}
    check_loaded(what, expected.keys() - matrices.keys(), matrices.keys() - expected.keys(), misshapen)
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(matrices[name])


def split_head(rest: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The reward head among an adapter's other tensors: what it is called there ("" if there is none), and its tensors.

    Their names are those of `RewardHead`.
    """
    head = {name.removeprefix(HEAD_PREFIX): rest[name] for name in rest if name.startswith(HEAD_PREFIX)}
    if head:
        return "v_head", head
    for called in HEAD_NAMES:
        if f"{called}.weight" in rest:
            return called, linear_head({name: rest[name] for name in rest if name.startswith(f"{called}.")})
    return "", {}


def linear_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's last layer by the names of `RewardHead`; one without a bias gets 0."""
    weight = next(tensor for name, tensor in tensors.items() if name.endswith(".weight"))
    own = next((tensor for name, tensor in tensors.items() if name.endswith(".bias")), torch.zeros(1))
    return {"summary.weight": weight, "summary.bias": own.float()}


def save_adapter(model: RewardModel, directory: Path, tokenizer: Any, pad: int) -> None:
    """Write a reward model's adapters as a peft folder, with its head, tokenizer and config.

    A linear head goes in as peft's `modules_to_save` of a sequence classifier, which peft and transformers read alone;
    an MLP head lies beside the adapter of a causal LM as `v_head.safetensors`, with `vhead_*` entries in config.json.

    Args:
        model: the reward model.
        directory: the folder.
        tokenizer: its tokenizer, with the pad token set.
        pad: id of the pad token.

    Errors: ValueError if it has no adapters, no named base model, or no row of embeddings for the pad token.
    """
    _check_adapters(model, pad)
    config, head = classifier_config(model, pad), final_head(model)
    assert isinstance(model.backbone, PeftModel)
    tensors = dict(get_peft_model_state_dict(model.backbone, adapter_name="default"))
    settings: Any = copy.copy(model.backbone.peft_config["default"])
    settings.base_model_name_or_path = resolve(model.backbone_config.name, "backbone")
    settings.inference_mode = True
    for entry, value in head_entries(model.head_config).items():
        setattr(config, entry, value)
    standard = model.head_config.kind == "linear" and is_standard(config)
    if standard:
        settings.task_type, settings.modules_to_save = TaskType.SEQ_CLS, ["score"]
        tensors["base_model.model.score.weight"] = head["summary.weight"]
        setattr(config, HEAD_BIAS, float(head["summary.bias"]))
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as temporary:
        part = Path(temporary)
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, part / ADAPTER_FILES[0])
        if not standard:
            save_file({HEAD_PREFIX + name: tensor for name, tensor in head.items()}, part / HEAD_FILE)
        settings.save_pretrained(str(part))
        config.save_pretrained(part)
        tokenizer.save_pretrained(part)
        publish_model(part, directory)


def _check_adapters(model: RewardModel, pad: int) -> None:
    backbone = model.backbone_config
    if backbone.lora is None:
        raise ValueError(
            "this model has no adapters: it was trained in full, or they are merged; export it with --format grm or "
            "classifier"
        )
    if not backbone.name or not backbone.pretrained:
        raise ValueError(
            "this model's base was made from a config alone, so no adapter can name it; export it with --format grm "
            "or classifier"
        )
    if pad >= embedding_rows(model.lm):
        raise ValueError(
            f"an adapter cannot add a pad token (id {pad}) to its base model's vocabulary, and none is free there; "
            "export it with --format classifier"
        )
