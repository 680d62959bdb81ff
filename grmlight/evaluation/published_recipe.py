"""With which hyperparameters the published rows were trained, and in what a run's differ.

The numbers are those of the GRM authors' scripts (`run_*_train.py`, `scripts/train_*.sh`); whether each table was made
with them is not said in what could be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LORA_TABLES = frozenset({"Table 1", "Table 2", "Table 3", "Table 4", "Table 7"})
_FULL_TABLES = frozenset({"Table 5"})

_PLACES = {
    "learning rate": "model.init_args.optimizer.init_args.lr",
    "epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
    "limit_train_batches": "trainer.limit_train_batches",
    "pairs a step": "data.init_args.pairs_per_step",
    "longest pair": "data.init_args.prepare.max_length",
    "LoRA": "model.init_args.backbone.lora",
    "LoRA rank": "model.init_args.backbone.lora.r",
    "LoRA alpha": "model.init_args.backbone.lora.alpha",
    "members of the ensemble": "model.init_args.ensemble.members",
}
"""What is compared, and where `config.yaml` has it."""

_ANYTHING = object()

_WHOLE = {"max_steps": -1, "limit_train_batches": None, "members of the ensemble": "models"}
_LORA = _WHOLE | {
    "learning rate": 1e-5,
    "epochs": 2,
    "pairs a step": 24,
    "longest pair": 1024,
    "LoRA": _ANYTHING,
    "LoRA rank": 32,
    "LoRA alpha": 64,
}
_FULL = _WHOLE | {"learning rate": 5e-6, "epochs": 1, "pairs a step": 256, "longest pair": 3000, "LoRA": None}
_PENALTY = {"weight": 0.01, "beta": 0.1}


def differences(number: str, config: Mapping[str, Any]) -> list[str] | None:
    """In what a run differs from the recipe of a published table: "epochs 2, here 1".

    What `config.yaml` does not have is not compared. None where no recipe of the table is known.

    Args:
        number: of the table, as in `PublishedRow`.
        config: the run's.
    """
    if number not in _LORA_TABLES | _FULL_TABLES:
        return None
    recipe = dict(_LORA if number in _LORA_TABLES else _FULL)
    if _found(config, "model.init_args.backbone.frozen") is True:
        # The authors' frozen backbone has no adapters.
        del recipe["LoRA"]
    found = {name: _found(config, place) for name, place in _PLACES.items()}
    if isinstance(_found(config, "model.init_args.backbone"), str):
        found["LoRA"] = None
    pairs = [(name, value, found[name]) for name, value in recipe.items()]
    pairs += [(name, _PENALTY[name], value) for name, value in _penalties(config)]
    return [
        f"{name} {'some' if published is _ANYTHING else _shown(published)}, here {_shown(here)}"
        for name, published, here in pairs
        if here is not _ANYTHING and not _same(name, published, here)
    ]


def _same(name: str, published: Any, here: Any) -> bool:
    if published is _ANYTHING:
        return here is not None
    # 1.0 is all packs of an epoch, 1 is one pack.
    everything = name == "limit_train_batches" and isinstance(here, float) and here == 1.0
    return everything or here == published


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _found(config: Any, place: str) -> Any:
    """What lies at a place, `_ANYTHING` where there is no such place."""
    for key in place.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return _ANYTHING
        config = config[key]
    return config


def _penalties(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Weight and beta of the regularizers."""
    callbacks = _found(config, "trainer.callbacks")
    listed = callbacks if isinstance(callbacks, list) else []
    given = [each.get("init_args") or {} for each in listed if ".regularizers." in each.get("class_path", "")]
    return [(name, each[name]) for each in given for name in _PENALTY if each.get(name) is not None]
