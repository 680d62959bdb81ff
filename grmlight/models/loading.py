"""Any reward model of a folder: `kind` in its grmlight.json names the class that reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from grmlight.models.experts import ExpertsModel
from grmlight.models.reward_model import RewardModel

OPTIONS_FILE = "grmlight.json"
"""What a model folder holds beside weights, config and tokenizer."""

_KINDS: dict[str, Callable[..., nn.Module]] = {
    "reward": RewardModel.from_pretrained,
    "experts": ExpertsModel.from_pretrained,
}


def load_reward_model(folder: Path, **options: Any) -> nn.Module:
    """Load the model of a folder; it is called as a `RewardModel` is.

    Args:
        folder: a model folder.
        options: see `RewardModel.from_pretrained`.

    Errors: ValueError in one line for an unknown kind, and as the class that reads it.
    """
    path = folder / OPTIONS_FILE
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("kind", "reward") if path.exists() else "reward"
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); copy the model again") from error
    if kind not in _KINDS:
        raise ValueError(f"{path}: kind {kind!r} is none of {', '.join(_KINDS)}; a newer grmlight may read it")
    return _KINDS[kind](folder, **options)
