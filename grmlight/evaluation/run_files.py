"""A run directory as `grmlight compare` reads it.

`results.json` holds the sets that the run itself was evaluated on, `evaluation.json` the benchmarks that
`grmlight evaluate` added, `rows-SET.json` and `evaluation-rows-BENCHMARK.json` what was right row by row, `costs.json`
what the model costs, `config.yaml` how it was trained. Of these one of the first two must be there. A set that has a
benchmark's name stands beside it as "NAME (validation)".
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import yaml

from grmlight.evaluation.rows import Rows, evaluation_rows_file, read_rows, rows_file
from grmlight.evaluation.tally import ALL, AVERAGE

LengthUnit = Literal["tokens", "characters"]


@dataclasses.dataclass(frozen=True)
class Score:
    """A run's accuracy on something, as shares.

    Attributes:
        accuracy: of the rewards.
        low, high: its 95% interval; None where it has none.
        n: rows.
        ruler: accuracy of "longer wins"; None where it is not defined.
        unit: in which the ruler measures lengths: scored tokens of a run's own sets, characters of a benchmark.
    """

    accuracy: float
    low: float | None
    high: float | None
    n: int
    ruler: float | None
    unit: LengthUnit


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
    benchmarks = _benchmarks(evaluation)
    files = {name: evaluation_rows_file(folder, name) for name, _ in benchmarks}
    sets: dict[tuple[str, str], Score] = {}
    for name, score in _sets(results).items():
        shown = name if name not in files else f"{name} (validation)"
        sets[shown, ALL], files[shown] = score, rows_file(folder, name)
    return Run(
        label,
        folder,
        sets | benchmarks,
        costs=_costs(folder / "costs.json"),
        config=_config(folder / "config.yaml"),
        rows={name: read_rows(path) for name, path in files.items() if path.is_file()},
    )


def _sets(path: Path) -> dict[str, Score]:
    try:
        return {
            name: Score(
                _number(each["accuracy"]),
                *(_finite(each[bound]) for bound in ("low", "high")),
                n=int(each["pairs"]),
                ruler=_finite(each["longer_wins"]),
                unit="tokens",
            )
            for name, each in _json(path).items()
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no file of results ({error}); evaluate the run again") from error


def _benchmarks(path: Path) -> dict[tuple[str, str], Score]:
    try:
        return {
            (row["benchmark"], category(row["category"])): Score(
                _number(row["accuracy"]),
                *(_finite(row[bound]) for bound in ("low", "high")),
                n=int(row["n"]),
                ruler=_finite(row["ruler"]),
                unit="characters",
            )
            for row in _json(path).get("rows", [])
            if row["accuracy"] is not None
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no file of `grmlight evaluate` ({error}); evaluate the run again") from error


def _costs(path: Path) -> dict[str, float]:
    try:
        return {name: _number(value) for name, value in _json(path).items()}
    except TypeError as error:
        raise ValueError(f"{path}: is no file of costs ({error}); remove it to compare without costs") from error


def _config(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: is no YAML ({' '.join(str(error).split())}); remove it to compare without it"
        ) from error
    return found if isinstance(found, dict) else {}


def category(name: str) -> str:
    """A category's name in one spelling: `Chat Hard`, `Chat-Hard` and `chat_hard` are one; none becomes a total's."""
    found = re.sub(r"[\W_]+", "_", name.lower()).strip("_") or name
    return f"{found}_category" if found in (ALL, AVERAGE) and found != name else found


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _finite(value: Any) -> float | None:
    return None if value is None or math.isnan(_number(value)) else value


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error}); evaluate the run again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: is no JSON object; evaluate the run again")  # noqa: TRY004 - a user's file
    return found
