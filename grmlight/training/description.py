"""What a checkpoint says of its model, as plain data, so that a model can be made of the checkpoint alone.

Notable decisions:

- The model's config and the tokenizer's files are kept themselves, not their names: folders move, hubs change.
- Frozen weights of a pretrained backbone are left out. Their names and a hash of their bits are kept; whoever loads the
  checkpoint brings the same weights, or is told so.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from grmlight.data.options import PrepareOptions
from grmlight.data.tokenizer import load_tokenizer
from grmlight.models import (
    AnyRewardModel,
    BackboneConfig,
    EnsembleConfig,
    EnsembleModel,
    HeadConfig,
    LoraOptions,
    PolicyModel,
    RewardModel,
    expert_files,
)
from grmlight.models.checkpoint import fingerprint, frozen_names
from grmlight.models.experts import ExpertsModel

DESCRIPTION = "grmlight_model"
"""The checkpoint's entry."""

_PREFIX = "model."


def describe(model: AnyRewardModel | PolicyModel, tokenizer: str, options: PrepareOptions) -> dict[str, Any]:
    """The description of a model, in part or whole on this rank. Call it on every rank.

    Args:
        model: the model in training.
        tokenizer: the name or folder of its tokenizer.
        options: the preparation of its training pairs.
    """
    names = frozen_names(model)
    return {
        "backbone": dataclasses.asdict(model.backbone_config),
        "config": json.loads(model.lm.config.to_json_string(use_diff=False)),
        "head": None if isinstance(model, PolicyModel) else dataclasses.asdict(model.head_config),
        "experts": expert_files.entries(model) if isinstance(model, ExpertsModel) else None,
        "packing": "auto" if model.packed else "never",
        "ensemble": dataclasses.asdict(model.config) if isinstance(model, EnsembleModel) else None,
        "tokenizer": _tokenizer_files(tokenizer, options),
        "prepare": dataclasses.asdict(options) | {"chat_template": None},
        "left_out": sorted(_PREFIX + name for name in names),
        "fingerprint": fingerprint(model, names) if names else None,
    }


def left_out(checkpoint: dict[str, Any]) -> frozenset[str]:
    """The names of the frozen tensors that a checkpoint does not hold."""
    return frozenset((checkpoint.get(DESCRIPTION) or {}).get("left_out", ()))


def check_frozen(model: AnyRewardModel | PolicyModel, checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that a checkpoint has left out, from the model, by their names in the checkpoint.

    Errors: ValueError if they are not those that the checkpoint was written with.
    """
    names = left_out(checkpoint)
    if not names:
        return {}
    described = checkpoint[DESCRIPTION]
    inner = [name.removeprefix(_PREFIX) for name in names]
    expected, found = described["backbone"]["name"], model.backbone_config.name
    if (
        not names <= {_PREFIX + name for name in frozen_names(model)}
        or fingerprint(model, inner) != (described["fingerprint"])
    ):
        raise ValueError(
            f"the checkpoint left out the frozen weights of backbone {expected!r}, and those of {found!r} are others; "
            "use the same backbone, revision and dtype"
        )
    state = dict(model.named_parameters(remove_duplicate=False))
    return {_PREFIX + name: state[name].detach() for name in inner}


def build(described: dict[str, Any], tensors: dict[str, Tensor]) -> AnyRewardModel | PolicyModel:
    """The model of a description with a checkpoint's tensors.

    Errors: ValueError if they do not fit, or the frozen weights that were left out cannot be had.
    """
    with tempfile.TemporaryDirectory() as folder:
        backbone: dict[str, Any] = described["backbone"] | {"gradient_checkpointing": False}
        if backbone["lora"] is not None:
            backbone["lora"] = LoraOptions(**backbone["lora"])
        if not described["left_out"]:
            (Path(folder) / "config.json").write_text(json.dumps(described["config"]), encoding="utf-8")
            backbone |= {"name": folder, "pretrained": False, "config": None, "revision": None}
        config, packing = BackboneConfig(**backbone), described["packing"]
        if described.get("experts"):
            model = expert_files.build(ExpertsModel, config, described["experts"], {"packing": packing})
        elif ensemble := described.get("ensemble"):
            head = HeadConfig(**described["head"])
            model = EnsembleModel.build(config, head, EnsembleConfig(**ensemble), packing=packing)
        elif described["head"] is None:
            model = PolicyModel(config, packing=packing)
            tensors = {name: each for name, each in tensors.items() if not model.of_critic(name.removeprefix(_PREFIX))}
        else:
            model = RewardModel(config, HeadConfig(**described["head"]), packing=packing)
    frozen = check_frozen(model, {DESCRIPTION: described})
    whole = {name.removeprefix(_PREFIX): tensor for name, tensor in (tensors | frozen).items()}
    try:
        model.load_state_dict(whole)
    except RuntimeError as error:
        raise ValueError(
            f"the checkpoint's tensors do not fit its model: {' '.join(str(error).split())[:300]}"
        ) from error
    return model


def unpack_tokenizer(described: dict[str, Any], folder: Path) -> None:
    """Write the tokenizer's files into a folder."""
    for name, text in described["tokenizer"].items():
        path = folder / Path(name).name
        path.write_text(text, encoding="utf-8")


def _tokenizer_files(name: str, options: PrepareOptions) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        load_tokenizer(name, options.chat_template).save_pretrained(folder)
        return {
            path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir()) if path.is_file()
        }
