"""What papers print for the same setting as a run's: `published.json`, a source with every number.

A cell that no source has is null and shown as "not found"; nothing in the file is estimated.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

_ANY = "*"

COLUMNS = {
    "preference": ("unified_feedback", "hhh", "mtbench"),
    "rewardbench": ("chat", "chat_hard", "safety", "reasoning", "average"),
}
"""The columns of the papers' tables: benchmarks, and the sections of RewardBench with their mean."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a reward model was trained, as far as tables tell models apart.

    Attributes:
        base: the last part of the base model's hub name.
        data: "400K", "40K" or "8K" of Unified-Feedback, or the last part of the data set's hub name.
        method: a name of `grmlight.evaluation.matrix.METHODS` where it is one of the paper's.
        flip: fraction of flipped labels.
        head: "mlp" or "linear".
    """

    base: str
    data: str
    method: str
    flip: float = 0.0
    head: str = _ANY


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """A row of a published table.

    Attributes:
        table: a key of `COLUMNS`.
        number: of the table in its paper, or "released" for models on the hub.
        setting: what it is of; "*" stands for any value.
        label: what the table calls it.
        values: a percentage by column; None where it was not found.
        source: where the numbers come from.
        note: what is odd about them.
    """

    table: str
    number: str
    setting: Setting
    label: str
    values: dict[str, float | None]
    source: str
    note: str = ""

    def is_of(self, setting: Setting) -> bool:
        """Whether it is of this setting; the head may be another."""
        mine, theirs = ((each.base, each.data, each.method, each.flip) for each in (self.setting, setting))
        return all(own in (_ANY, other) for own, other in zip(mine, theirs, strict=True))

    def has_head_of(self, setting: Setting) -> bool:
        """Whether its head is of the setting's kind, or is not said."""
        return self.setting.head in (_ANY, setting.head)


@functools.cache
def published_rows() -> tuple[PublishedRow, ...]:
    """All rows of the file."""
    text = importlib.resources.files("grmlight.evaluation").joinpath("published.json").read_text(encoding="utf-8")
    found = json.loads(text)
    return tuple(_row(each, found["sources"]) for each in found["rows"])


def _row(row: Mapping[str, Any], sources: Mapping[str, str]) -> PublishedRow:
    columns = COLUMNS[row["table"]]
    return PublishedRow(
        row["table"],
        row["number"],
        Setting(row["base"], row["data"], row["method"], row["flip"], row["head"]),
        row["label"],
        dict(zip(columns, row["values"] or [None] * len(columns), strict=True)),
        sources[row["source"]],
        row.get("note", ""),
    )


def row_beside(table: str, setting: Setting | None) -> PublishedRow | None:
    """The published row of a run's setting: its own, or one that says that none was found; None for other settings."""
    if setting is None:
        return None
    found = [row for row in published_rows() if row.table == table and row.is_of(setting)]
    # A row of this method alone comes before one that says that the whole table was not found.
    return min(found, key=lambda row: (row.setting.method == _ANY, not row.has_head_of(setting)), default=None)


def rows_around(table: str, settings: list[Setting]) -> list[PublishedRow]:
    """All published rows of a table on the same base models and data as some runs."""
    return [
        row
        for row in published_rows()
        if row.table == table
        and any(row.is_of(dataclasses.replace(each, method=row.setting.method)) for each in settings)
    ]


def setting_of(config: Mapping[str, Any]) -> Setting | None:
    """The setting of a run's `config.yaml`, None where it cannot be told.

    Only what the papers' tables tell apart is read; other learning rates, lengths or seeds are the reader's to see.
    """
    try:
        return _setting(config)
    except (AttributeError, KeyError, TypeError):
        # A file that somebody has edited.
        return None


def _setting(config: Mapping[str, Any]) -> Setting | None:
    if config.get("model", {}).get("class_path", "RewardModule").rpartition(".")[2] != "RewardModule":
        return None
    model, data = (config.get(part, {}).get("init_args", {}) for part in ("model", "data"))
    backbone, source = model.get("backbone"), data.get("train")
    name = backbone.get("name") if isinstance(backbone, Mapping) else backbone
    if not isinstance(name, str) or not isinstance(source, str):
        return None
    prepare = data.get("prepare") or {}
    return Setting(
        base=name.rstrip("/").rpartition("/")[2],
        data=_data(source, prepare.get("stride", 1)) + (", cut" if prepare.get("limit") else ""),
        method=_method(config, model),
        flip=prepare.get("flip", 0.0),
        head=_head(model),
    )


def _data(source: str, stride: int) -> str:
    name = source.partition("@")[0].partition(":")[0].rstrip("/").rpartition("/")[2]
    sizes = {2: "400K", 20: "40K", 100: "8K"}
    return sizes.get(stride, f"{name}, stride {stride}") if name == "Unified-Feedback" else name


def _head(model: Mapping[str, Any]) -> str:
    head = model.get("head", "mlp")
    return head.get("kind", "mlp") if isinstance(head, Mapping) else head


def _method(config: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    penalties = [_penalty(each) for each in callbacks if ".regularizers." in each.get("class_path", "")]
    backbone, ensemble = model.get("backbone"), model.get("ensemble") or {}
    if ensemble and ensemble.get("size", 3) != 3:
        return f"ensemble of {ensemble['size']}"
    special = {
        "frozen": isinstance(backbone, Mapping) and bool(backbone.get("frozen")),
        "ensemble_mean": ensemble.get("aggregation") == "mean",
        "ensemble_min": ensemble.get("aggregation") == "wco",
        "ensemble_uwo": ensemble.get("aggregation") == "uwo",
        "margin": bool(model.get("use_margin")),
        "label_smoothing": bool(model.get("label_smoothing")),
    }
    return "+".join([*penalties, *(name for name, is_it in special.items() if is_it)]) or "baseline"


def _penalty(callback: Mapping[str, Any]) -> str:
    kind, given = callback["class_path"].rpartition(".")[2], callback.get("init_args") or {}
    if kind == "TextGeneration" and given.get("form", "log_sigmoid") == "log_sigmoid":
        return "grm_sft"
    if kind == "DirectPreference":
        return "grm_dpo" if given.get("reference", True) else "grm_dpo_noref"
    return kind
