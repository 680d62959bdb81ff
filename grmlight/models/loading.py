"""Any reward model of a folder: `kind` in its grmlight.json names the class that reads it.

A folder without one holds a plain reward model, in our layout or in that of somebody else (`grmlight.models.foreign`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from grmlight.models import foreign
from grmlight.models.checkpoint import OPTIONS_FILE as OPTIONS_FILE
from grmlight.models.ensemble import EnsembleModel
from grmlight.models.experts import ExpertsModel


def _refuse_judge(folder: Path, **options: Any) -> nn.Module:  # noqa: ARG001
    raise ValueError(f"{folder}: is a judge, which reads texts and not tokens; `grmlight score` and `evaluate` take it")


def _refuse_policy(folder: Path, **options: Any) -> nn.Module:  # noqa: ARG001
    raise ValueError(f"{folder}: is a policy, which has no reward; give a reward model")


_KINDS: dict[str, Callable[..., nn.Module]] = {
    "reward": foreign.read,
    "ensemble": EnsembleModel.from_pretrained,
    "experts": ExpertsModel.from_pretrained,
    "judge": _refuse_judge,
    "policy": _refuse_policy,
}


def load_reward_model(folder: Path, **options: Any) -> nn.Module:
    """Load the model of a folder; it is called as a `RewardModel` is.

    Args:
        folder: a model folder.
        options: see `RewardModel.from_pretrained`; for an adapter also `base`, its base model's name or folder.

    Errors: ValueError in one line for an unknown kind, and as the class that reads it.
    """
    return _KINDS[read_kind(folder)](folder, **options)


def read_kind(folder: Path) -> str:
    """The kind of a model folder; one of another origin holds a plain reward model.

    Errors: ValueError in one line for an unknown kind, and if its grmlight.json cannot be read.
    """
    path = folder / OPTIONS_FILE
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("kind", "reward") if path.exists() else "reward"
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); copy the model again") from error
    if kind not in _KINDS:
        raise ValueError(f"{path}: kind {kind!r} is none of {', '.join(_KINDS)}; a newer grmlight may read it")
    return kind
