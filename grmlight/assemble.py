"""Ensembles of reward models that were trained one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from grmlight.data.prepare import Prepared, prepare
from grmlight.data.tokenizer import load_tokenizer
from grmlight.export import load_options, model_folder, save_model
from grmlight.models import EnsembleConfig, EnsembleModel, RewardModel, load_reward_model
from grmlight.models.aggregation import Aggregation
from grmlight.models.classifier import HEAD_BIAS
from grmlight.models.loading import read_kind
from grmlight.training.recentering import reference_batches

_NOT_THE_SHAPE = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", HEAD_BIAS})
_PAIRS_AT_ONCE = 16


def assemble(
    members: Sequence[Path],
    out: Path,
    reference: str,
    aggregation: Aggregation = "mean",
    variance_weight: float = 0.5,
) -> Prepared:
    """Write an ensemble's folder, each member recentered and scaled on reference pairs.

    Args:
        members: run directories or model folders, two or more.
        out: the folder to write.
        reference: pairs, in any form that `grmlight prepare` takes; `EnsembleConfig.reference_pairs` of them are used.
        aggregation: see `EnsembleConfig`.
        variance_weight: see `EnsembleConfig`.

    Errors: ValueError in one line for members that are unlike, and names what differs; for one that is given twice.
    """
    config = EnsembleConfig(len(members), "models", aggregation, variance_weight)
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise ValueError(f"{out}: exists and is not empty; name a new folder with --out")
    folders = [model_folder(member) for member in members]
    check_alike(folders)
    prepared = prepare(reference, str(folders[0]), load_options(folders[0]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = EnsembleModel([_load(folder) for folder in folders], config).to(device)
    batches = reference_batches(prepared, config.reference_pairs, _PAIRS_AT_ONCE)
    model.recenter(batch.to(device) for batch in batches)
    save_model(model.cpu(), out, str(folders[0]), load_options(folders[0]))
    return prepared


def check_alike(folders: Sequence[Path]) -> None:
    """Refuse members that do not read the same text with models of one shape, and weights that are there twice.

    Errors: ValueError in one line that names two folders and what differs.
    """
    for folder in folders:
        if (kind := read_kind(folder)) != "reward":
            raise ValueError(
                f"{folder}: is of the kind {kind!r}, no single reward model; give single ones, such as its members"
            )
    first = _traits(folders[0])
    for folder in folders[1:]:
        traits = _traits(folder)
        differing = [name for name in sorted(first.keys() | traits.keys()) if first.get(name) != traits.get(name)]
        if differing:
            raise ValueError(
                f"{folders[0]} and {folder} cannot be of one ensemble: they differ in {', '.join(differing)}; "
                "train members alike but for their seeds"
            )
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (place := folder.resolve()) in seen:
            raise ValueError(f"{folder}: is given twice; an ensemble of one model and itself never disagrees")
        seen[place] = folder


def _load(folder: Path) -> RewardModel:
    model = load_reward_model(folder)
    assert isinstance(model, RewardModel)
    return model


def _traits(folder: Path) -> dict[str, Any]:
    """What members must have in common, by names that tell where to look."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: cannot be read ({error}); copy the model again") from error
    tokenizer = load_tokenizer(str(folder))
    traits = {f"config.json's {name}": value for name, value in config.items() if name not in _NOT_THE_SHAPE}
    traits |= {f"preparation's {name}": value for name, value in vars(load_options(folder)).items()}
    traits["the chat template"] = tokenizer.chat_template
    traits["the tokenizer's special tokens"] = tokenizer.special_tokens_map
    traits["the tokenizer's vocabulary"] = tokenizer.get_vocab()
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        traits["the tokenizer"] = tokenizer.backend_tokenizer.to_str()
    return traits
