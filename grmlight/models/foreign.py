"""Reward models in any layout that is about: which one a folder has, and a `RewardModel` made of it.

Notable decisions:

- The tensors decide, not the config: classifiers that began as a GRM keep `vhead_*` entries that mean nothing.
- Layouts: the GRM authors' (`v_head.*` beside a causal LM), sequence classifiers with one label (`score.weight`:
  transformers, TRL; OpenRLHF too, its normalization applied), and LoRA adapters of each, with the base model they name.
- A classifier has no LM head unless its embeddings are tied to one, so penalties on its log-probs are refused.
- The reward is read where the folder's own engine reads it: transformers' classifiers skip pad tokens at the end, real
  ones too; the GRM authors' code and OpenRLHF's go by the mask.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from grmlight.data.options import PrepareOptions
from grmlight.data.padding import largest_token
from grmlight.data.tokenizer import load_tokenizer
from grmlight.models.adapters import (
    ADAPTER_CONFIG,
    HEAD_FILE,
    HEAD_NAMES,
    adapter_tensors,
    linear_head,
    load_adapter,
    lora_options,
    read_adapter_config,
    split_head,
)
from grmlight.models.backbone import (
    FOREIGN_PREFIX,
    HEAD_PREFIX,
    KEEPS_LM_HEAD,
    BackboneConfig,
    read_config,
)
from grmlight.models.checkpoint import BACKBONE_OPTIONS, head_config, head_tensors, load_head
from grmlight.models.heads import HeadConfig
from grmlight.models.hidden import SKIPPED_TOKEN
from grmlight.models.reward_model import RewardModel
from grmlight.models.weights import read_tensors, tensor_names

logger = logging.getLogger("grmlight")


@dataclasses.dataclass(frozen=True)
class Found:
    """A reward model's parts, as a folder holds them.

    Attributes:
        folder: the folder.
        backbone: what to build, adapters included.
        head: the head's shape.
        head_tensors: its tensors, by their names in `RewardHead`.
        adapter: matrices of the adapters, if there are any.
        shift, scale: normalization of the rewards.
    """

    folder: Path
    backbone: BackboneConfig
    head: HeadConfig
    head_tensors: dict[str, Tensor]
    adapter: dict[str, Tensor] | None = None
    shift: float = 0.0
    scale: float = 1.0

    def fill(self, model: RewardModel) -> None:
        """Put the tensors into a model of this backbone and head. ValueError names what does not fit."""
        # Adapters first: where both do not fit, they tell what is wrong, another backbone.
        if self.adapter is not None:
            load_adapter(model, self.adapter, f"adapter {self.folder} on base model {self.backbone.name!r}")
        load_head(model, self.head_tensors, self.folder)
        model.reward_shift.fill_(self.shift)
        model.reward_scale.fill_(self.scale)


def read(folder: Path, base: str | None = None, **options: Any) -> RewardModel:
    """Load a reward model from a folder of any known layout.

    Args:
        folder: the folder.
        base: the base model of an adapter, in place of the one that it names.
        options: see `RewardModel.from_pretrained`.

    Errors: ValueError in one line for what is no reward model or does not fit.
    """
    chosen = {name: options.pop(name) for name in BACKBONE_OPTIONS & options.keys()}
    found = find(folder, base, **chosen)
    model = RewardModel(found.backbone, found.head, **options)
    found.fill(model)
    return model


def find(folder: Path, base: str | None = None, **backbone: Any) -> Found:
    """What a folder holds, without building it.

    Args:
        folder: the folder.
        base: see `read`.
        backbone: options of `BackboneConfig`.

    Errors: see `read`.
    """
    if (folder / ADAPTER_CONFIG).exists():
        found = _find_adapter(folder, base, backbone)
    elif base is not None:
        raise ValueError(f"{folder} is no adapter, so it takes no base model; leave that out")
    else:
        found = _find_whole(folder, backbone)
    _check_tokenizer(folder, found)
    return found


def check_vocabulary(tokenizer: Any, name: str, config: PretrainedConfig) -> None:
    """Refuse a tokenizer whose texts hold tokens that a model does not have; padding in no text may lie outside.

    Args:
        tokenizer: the tokenizer.
        name: what messages call it.
        config: the model's.

    Errors: ValueError in one line.
    """
    size, largest = config.get_text_config(decoder=True).vocab_size, largest_token(tokenizer)
    if largest >= size:
        raise ValueError(
            f"tokenizer {name!r} has a token {largest} and the model a vocabulary of {size}; they do not belong "
            "together, use the tokenizer that the model was trained with"
        )


def by_grm_authors(folder: Path) -> bool:
    """Whether the GRM authors' code wrote a folder: it names its head and, unlike ours, not the head's dropout."""
    try:
        entries = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return "vhead_layer_type" in entries and "summary_dropout_prob" not in entries


def warn_of_text(folder: Path, options: PrepareOptions) -> None:
    """Say so if a model of the GRM authors' is about to read other text than it was trained on."""
    if by_grm_authors(folder) and not options.paper_text:
        logger.warning(
            "%s is a model of the GRM authors, trained on their text, and paper_text is off: its rewards will differ "
            "from theirs; append configs/paper_text.yaml or set paper_text: true",
            folder,
        )


def _find_whole(folder: Path, backbone: dict[str, Any]) -> Found:
    entries = _entries(folder)
    try:
        names = tensor_names(folder)
    except ValueError as error:
        raise ValueError(f"{folder} is no reward model: {error}") from error
    if any(name.startswith(HEAD_PREFIX) for name in names):
        head = head_config(entries, folder)
        return Found(folder, BackboneConfig(name=str(folder), **backbone), head, head_tensors(folder))
    called = next((name for name in _head_names(entries) if f"{name}.weight" in names), None)
    if called is None:
        raise ValueError(
            f"{folder} is no reward model: its weights hold neither v_head.* nor score.weight; "
            "to train one on it, name it as the backbone and choose a head"
        )
    return _find_classifier(folder, entries, called, backbone)


def _find_classifier(folder: Path, entries: dict[str, Any], called: str, backbone: dict[str, Any]) -> Found:
    own = read_tensors(folder, f"{called}.")
    rows = own[f"{called}.weight"].shape[0]
    if rows != 1:
        raise ValueError(f"{folder}: its classifier has {rows} labels; a reward model has one")
    openrlhf = _is_openrlhf(entries)
    pad = None if openrlhf else _text_entry(entries, "pad_token_id")
    config = {
        "vhead_layer_type": "linear",
        FOREIGN_PREFIX: f"{called}.",
        **({} if _tied(folder) else {KEEPS_LM_HEAD: False}),
        **({} if pad is None else {SKIPPED_TOKEN: pad}),
    }
    scaled = openrlhf and bool(entries.get("normalize_reward"))
    return Found(
        folder,
        BackboneConfig(name=str(folder), config=config, **backbone),
        HeadConfig(kind="linear", dropout=0.0),
        linear_head(own),
        shift=entries.get("mean", 0.0) if scaled else 0.0,
        scale=entries.get("std", 1.0) if scaled else 1.0,
    )


def _find_adapter(folder: Path, base: str | None, backbone: dict[str, Any]) -> Found:
    entries = read_adapter_config(folder)
    if backbone.pop("lora", None) is not None or backbone.get("frozen"):
        raise ValueError(
            f"{folder} has adapters of its own, with which training goes on; leave out lora and frozen, or merge it "
            "first: grmlight export FOLDER --format grm"
        )
    lora, (matrices, rest) = lora_options(entries, folder), adapter_tensors(folder)
    called, head = split_head(rest)
    if extra := sorted(rest.keys() - _names_of(called, head)):
        raise ValueError(f"{folder}: the adapter's file also holds {', '.join(extra[:5])}, which has no place")
    if (folder / HEAD_FILE).exists():
        called, head = "v_head", head_tensors(folder, (HEAD_FILE,))
    under = _find_base(folder, base or entries.get("base_model_name_or_path"), backbone)
    if not head:
        if under.head_tensors:
            return dataclasses.replace(
                under, folder=folder, backbone=dataclasses.replace(under.backbone, lora=lora), adapter=matrices
            )
        raise ValueError(
            f"{folder} has no reward head: neither the adapter (TRL: modules_to_save=['score']) nor its base model "
            "holds one"
        )
    config = dict(under.backbone.config or {})
    own = _entries(folder) if (folder / "config.json").exists() else {}
    if called == "v_head":
        config.pop(SKIPPED_TOKEN, None)
        shape = head_config(own, folder)
    else:
        shape = HeadConfig(kind="linear", dropout=own.get("summary_dropout_prob", 0.0))
        pad = _pad_of(folder, under)
        config |= {} if pad is None else {SKIPPED_TOKEN: pad}
    built = dataclasses.replace(under.backbone, lora=lora, config=config or None)
    return Found(folder, built, shape, head, matrices)


def _find_base(folder: Path, name: str | None, backbone: dict[str, Any]) -> Found:
    """An adapter's base: a causal LM (no head tensors), or a reward model itself."""
    if not name:
        raise ValueError(f"{folder}: its {ADAPTER_CONFIG} names no base model; write it to base_model_name_or_path")
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            names = tensor_names(path)
            heads = tuple(f"{each}.weight" for each in HEAD_NAMES)
            if any(each.startswith(HEAD_PREFIX) or each in heads for each in names):
                return _find_whole(path, backbone)
        found = BackboneConfig(name=str(path) if path.is_dir() else name, **backbone)
        read_config(found)
    except ValueError as error:
        raise ValueError(
            f"{folder}: its base model cannot be read; write its folder to base_model_name_or_path in "
            f"{ADAPTER_CONFIG} ({error})"
        ) from error
    return Found(folder, found, HeadConfig(kind="linear"), {})


def _names_of(called: str, head: dict[str, Tensor]) -> set[str]:
    if called == "v_head":
        return {HEAD_PREFIX + name for name in head}
    return {f"{called}.weight", f"{called}.bias"} if called else set()


def _entries(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} is no reward model: its config.json cannot be read ({error})") from error


def _head_names(entries: dict[str, Any]) -> list[str]:
    named = entries.get("value_head_prefix")
    return [*([named] if isinstance(named, str) else []), *HEAD_NAMES]


def _is_openrlhf(entries: dict[str, Any]) -> bool:
    return entries.get("architectures") == ["RewardModel"] or "normalize_reward" in entries


def _text_entry(entries: dict[str, Any], name: str) -> Any:
    """An entry of a config.json, from the part about text where there is one."""
    nested = entries.get("text_config")
    return nested[name] if isinstance(nested, dict) and name in nested else entries.get(name)


def _tied(folder: Path) -> bool:
    return bool(read_config(BackboneConfig(name=str(folder))).get_text_config(decoder=True).tie_word_embeddings)


def _pad_of(folder: Path, under: Found) -> int | None:
    """The pad token of a classifier's adapter: its tokenizer's, as TRL sets it, or the base model's."""
    if (folder / "tokenizer.json").exists():
        return load_tokenizer(str(folder)).pad_token_id
    return read_config(under.backbone).get_text_config(decoder=True).pad_token_id


def _check_tokenizer(folder: Path, found: Found) -> None:
    if (folder / "tokenizer.json").exists():
        check_vocabulary(load_tokenizer(str(folder)), str(folder), read_config(found.backbone))
