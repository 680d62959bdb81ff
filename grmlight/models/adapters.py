"""LoRA adapters on disk: peft's folders, and those of the GRM authors' trainer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grmlight.models.backbone import HEAD_PREFIX, LoraOptions, check_loaded
from grmlight.models.reward_model import RewardModel
from grmlight.models.weights import ADAPTER_FILES, read_tensors

ADAPTER_CONFIG = "adapter_config.json"

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
    for name, tensor in read_tensors(folder, lambda name: True, ADAPTER_FILES).items():
        plain = _WRAPPERS.sub("", name).replace(".modules_to_save.default.", ".")
        if _MATRIX.search(plain):
            matrices[_MATRIX.sub(r".\1", plain)] = tensor
        else:
            rest[plain] = tensor
    if not matrices:
        raise ValueError(f"{folder}: its weights hold no adapter (no lora_A and lora_B); copy it again")
    return matrices, rest


def load_adapter(model: RewardModel, matrices: dict[str, Tensor], what: str) -> None:
    """Put matrices into a model's adapters. A ValueError names those that do not fit: an adapter of another backbone."""
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


def linear_head(tensors: dict[str, Tensor], bias: float = 0.0) -> dict[str, Tensor]:
    """A classifier's last layer by the names of `RewardHead`; one without a bias gets the one given."""
    weight = next(tensor for name, tensor in tensors.items() if name.endswith(".weight"))
    own = next((tensor for name, tensor in tensors.items() if name.endswith(".bias")), torch.full((1,), bias))
    return {"summary.weight": weight, "summary.bias": own.float()}
