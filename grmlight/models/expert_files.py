"""Mixtures of experts on disk: the causal LM as a Hugging Face folder, and what was trained in experts.safetensors."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grmlight.data.names import resolve
from grmlight.models.backbone import BackboneConfig, check_loaded
from grmlight.models.checkpoint import OPTIONS_FILE, writing
from grmlight.models.expert_config import ExpertsConfig
from grmlight.models.heads import HeadConfig
from grmlight.models.lora import LoraOptions

if TYPE_CHECKING:
    from grmlight.models.experts import ExpertsModel

    Model = TypeVar("Model", bound=ExpertsModel)

KIND = "experts"
"""The kind that the folder's grmlight.json names."""

_TENSORS = "experts.safetensors"
_LM, _ADAPTERS = "backbone.", ".adapters."


def save(model: ExpertsModel, directory: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Write the folder under a temporary name, then move it into place, config.json last.

    Raises:
        ValueError: the directory is a file.
    """
    with writing(directory) as part:
        state = {name: tensor for name, tensor in model.lm.state_dict().items() if _ADAPTERS not in name}
        model.lm.save_pretrained(part, state_dict=state)
        save_file(_trained(model), part / _TENSORS)
        (part / OPTIONS_FILE).write_text(json.dumps(folder_entries(model), indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(part)


def load(model_class: type[Model], directory: str | os.PathLike[str], options: dict[str, Any]) -> Model:
    """Build a model from a folder. See `ExpertsModel.from_pretrained`."""
    folder = Path(resolve(os.fspath(directory), "model"))
    try:
        kept = json.loads((folder / OPTIONS_FILE).read_text(encoding="utf-8"))[KIND]
        backbone = BackboneConfig(
            name=str(folder),
            lora=LoraOptions(**kept["lora"] | {"targets": tuple(kept["lora"]["targets"])}),
            **{name: options.pop(name) for name in ("dtype", "gradient_checkpointing") if name in options},
        )
        model = build(model_class, backbone, kept, options)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds no experts: its {OPTIONS_FILE} cannot be read ({error})") from error
    try:
        tensors = load_file(folder / _TENSORS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / _TENSORS} cannot be read ({error}); copy or train the model again") from error
    expected = _trained(model)
    misshapen = {name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape}
    what = f"experts in {folder}"
    check_loaded(what, expected.keys() - tensors.keys(), tensors.keys() - expected.keys(), misshapen)
    model.load_state_dict(tensors, strict=False)
    return model


def entries(model: ExpertsModel) -> dict[str, Any]:
    """What a model is, beside its backbone, as plain data."""
    return {
        **dataclasses.asdict(model.experts_config),
        "head": dataclasses.asdict(model.head_config),
        "phase": model.phase,
    }


def build(model_class: type[Model], backbone: BackboneConfig, kept: dict[str, Any], options: dict[str, Any]) -> Model:
    """The model of `entries`, with the weights of its backbone alone."""
    experts = ExpertsConfig(kept["tasks"], kept["routing"])
    return model_class(backbone, experts, HeadConfig(**kept["head"]), phase=kept["phase"], **options)


def folder_entries(model: ExpertsModel) -> dict[str, Any]:
    """What the folder's grmlight.json says of a model."""
    assert model.backbone_config.lora is not None
    return {"kind": KIND, KIND: entries(model) | {"lora": dataclasses.asdict(model.backbone_config.lora)}}


def _trained(model: ExpertsModel) -> dict[str, Tensor]:
    """All tensors but the causal LM's own."""
    state = model.state_dict().items()
    return {
        name: tensor.detach().contiguous() for name, tensor in state if not name.startswith(_LM) or _ADAPTERS in name
    }
