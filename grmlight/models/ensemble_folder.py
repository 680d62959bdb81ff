"""Ensembles on disk.

Whole models lie in folders `member-0`, `member-1`, ... of GRM's layout, each a reward model of its own. A shared LM
lies in the folder itself, as any causal LM does. `members.safetensors` holds the rest: adapters, heads and the
statistics for recentering. `grmlight.json` says what the ensemble is.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grmlight.data.names import resolve
from grmlight.models import checkpoint
from grmlight.models.backbone import BackboneConfig, check_loaded
from grmlight.models.checkpoint import BACKBONE_OPTIONS, MEMBER, MEMBERS_FILE, OPTIONS_FILE
from grmlight.models.ensemble_config import EnsembleConfig
from grmlight.models.heads import HeadConfig
from grmlight.models.lora import LoraOptions
from grmlight.models.reward_model import RewardModel

if TYPE_CHECKING:
    from grmlight.models.ensemble import EnsembleModel

    Ensemble = TypeVar("Ensemble", bound=EnsembleModel)

_CHOICES = ("aggregation", "variance_weight")


def save(model: EnsembleModel, directory: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Write the folder. Errors: ValueError if the directory is a file."""
    with checkpoint.writing(directory) as part:
        if model.config.members == "models":
            for number, trunk in enumerate(model.trunks):
                assert isinstance(trunk, RewardModel)
                checkpoint.save(trunk, part / f"{MEMBER}{number}", tokenizer)
            model.lm.config.save_pretrained(part)
        else:
            _shared(model).save_pretrained(part)
        save_file(_own_tensors(model), part / MEMBERS_FILE)
        (part / OPTIONS_FILE).write_text(json.dumps(model.folder_entries(), indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(part)


def load(model_class: type[Ensemble], directory: str | os.PathLike[str], options: dict[str, Any]) -> Ensemble:
    """Build an ensemble from a folder. See `EnsembleModel.from_pretrained`."""
    folder = Path(resolve(os.fspath(directory), "model"))
    try:
        entries = json.loads((folder / OPTIONS_FILE).read_text(encoding="utf-8"))
        given = {name: options.pop(name) for name in _CHOICES if name in options}
        config = EnsembleConfig(**entries["ensemble"] | given)
        head = HeadConfig(**entries["head"])
        lora = entries["lora"] and LoraOptions(**entries["lora"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} is no ensemble: its {OPTIONS_FILE} cannot be read ({error})") from error
    if config.members == "models":
        members = [folder / f"{MEMBER}{number}" for number in range(config.size)]
        trunks = [RewardModel.from_pretrained(member, **options) for member in members]
    else:
        chosen = {name: options.pop(name) for name in BACKBONE_OPTIONS & options.keys()}
        if lora is not None:
            chosen["lora"] = lora
        trunks = [RewardModel(BackboneConfig(name=str(folder), **chosen), head, **options)]
    model = model_class(trunks, config)
    _load_own(model, folder / MEMBERS_FILE)
    return model


def _shared(model: EnsembleModel) -> PreTrainedModel:
    """The LM that all members share; adapters that they share are merged into it, their own are left out."""
    trunk = model.first
    if model.config.members == "heads" or not isinstance(trunk.backbone, PeftModel):
        return checkpoint.merged(trunk)
    lm = copy.deepcopy(trunk.backbone).unload()
    assert isinstance(lm, PreTrainedModel)
    return lm


def _own_tensors(model: EnsembleModel) -> dict[str, Tensor]:
    """What the members do not share and no folder of theirs holds, by the names of the state."""
    names = {*model.statistics(), *(name for name in model.state_dict() if _is_own(model, name))}
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items() if name in names}


def _is_own(model: EnsembleModel, name: str) -> bool:
    if model.config.members == "models":
        return False
    return ".head." in name or (model.config.members == "adapters" and ".lora_" in name)


def _load_own(model: EnsembleModel, path: Path) -> None:
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy or train the ensemble again") from error
    expected = _own_tensors(model)
    misshapen = {name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape}
    check_loaded(
        f"ensemble in {path.parent}", expected.keys() - found.keys(), found.keys() - expected.keys(), misshapen
    )
    model.load_state_dict(found, strict=False)
