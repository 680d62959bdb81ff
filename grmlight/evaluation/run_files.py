"""A run directory as `grmlight compare` reads it.

`results.json` holds the sets that the run itself was evaluated on, `evaluation.json` the benchmarks that
`grmlight evaluate` added, `rows-SET.json` what was right row by row, `costs.json` what the model costs, `config.yaml`
how it was trained. Of these one of the first two must be there.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import yaml

from grmlight.evaluation.rows import Rows, read_rows, rows_file


@dataclasses.dataclass(frozen=True)
class Score:
    """A run's accuracy on something, as shares.

    Attributes:
        accuracy: of the rewards.
        low, high: its 95% interval; None where it has none.
        n: rows.
        ruler: accuracy of "longer wins".
    """

    accuracy: float
    low: float | None
    high: float | None
    n: int
    ruler: float | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        label: what tables call it.
        folder: its directory.
        scores: by (set or benchmark, category); the category of a total is "all" or "average".
        costs: see `grmlight.evaluation.run_report.run_costs`; empty where nothing is known.
        config: how it was trained; empty where nothing is known.
        rows: row by row what was right, by set, for the sets of which the run keeps it.
    """

    label: str
    folder: Path
    scores: dict[tuple[str, str], Score]
    costs: dict[str, float]
    config: dict[str, Any]
    rows: dict[str, Rows]


def read_runs(given: list[str]) -> list[Run]:
    """Read runs, each named `FOLDER` or `LABEL=FOLDER`.

    Without a label, tables call a run by the last parts of its path that tell it from the others.

    Errors: ValueError in one line for a folder that is no run, files that cannot be read, and two runs of one label.
    """
    if not given:
        raise ValueError("there is nothing to compare; name run directories (runs/NAME/version_K)")
    split = [_split(each) for each in given]
    folders = [folder for _, folder in split]
    labels = [label or short for (label, _), short in zip(split, short_names(folders), strict=True)]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two runs are called {label}; name them apart: LABEL=FOLDER")
    return [read_run(label, folder) for label, folder in zip(labels, folders, strict=True)]


def _split(given: str) -> tuple[str, Path]:
    label, mark, folder = given.partition("=")
    return (label, Path(folder)) if mark and not Path(given).exists() else ("", Path(given))


def short_names(folders: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, without the `version_K` at the end where that does."""
    whole = [folder.resolve().parts for folder in folders]
    bare = [part[:-1] if re.fullmatch(r"version_\d+", part[-1]) else part for part in whole]
    parts, depth = (bare, 1) if len(set(bare)) == len(set(whole)) else (whole, 2)
    while depth < max(map(len, parts)) and len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def read_run(label: str, folder: Path) -> Run:
    """Read a run directory.

    Errors: ValueError in one line.
    """
    results, evaluation = folder / "results.json", folder / "evaluation.json"
    if not folder.is_dir() or not (results.is_file() or evaluation.is_file()):
        what = "holds neither results.json nor evaluation.json" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"{folder}: is no run: {what}; name run directories (runs/NAME/version_K)")
    scores = _sets(results) | _benchmarks(evaluation)
    known = {name: path for name, _ in scores if (path := rows_file(folder, name)).is_file()}
    return Run(
        label,
        folder,
        scores,
        costs=_json(folder / "costs.json"),
        config=_config(folder / "config.yaml"),
        rows={name: read_rows(path) for name, path in known.items()},
    )


def _sets(path: Path) -> dict[tuple[str, str], Score]:
    try:
        return {
            (name, "all"): Score(
                each["accuracy"], each["low"], each["high"], int(each["pairs"]), _finite(each["longer_wins"])
            )
            for name, each in _json(path).items()
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no file of results ({error}); evaluate the run again") from error


def _benchmarks(path: Path) -> dict[tuple[str, str], Score]:
    try:
        return {
            (row["benchmark"], category(row["category"])): Score(
                row["accuracy"], row["low"], row["high"], row["n"], row["ruler"]
            )
            for row in _json(path).get("rows", [])
            if row["accuracy"] is not None
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no file of `grmlight evaluate` ({error}); evaluate the run again") from error


def _config(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path}: is no YAML ({' '.join(str(error).split())}); remove it to compare without it"
        ) from error
    return found if isinstance(found, dict) else {}


def category(name: str) -> str:
    """A category's name in one spelling: `Chat Hard`, `Chat-Hard` and `chat_hard` are one."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "all"


def _finite(value: float) -> float | None:
    return value if value == value else None  # noqa: PLR0124 - NaN is not equal to itself


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error}); evaluate the run again") from error
