"""What runs went through: at each step the value of every reward, and of the evaluation that none of them optimized."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from grmlight.evaluation.learning_curve import read_series


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One run.

    Attributes:
        source: its folder or file.
        reward: the reward that it optimized, where that was said.
        step_P: steps, rising.
        rewards: by name, the value at each step.
        evaluation_P: the evaluation at each step.
    """

    source: str
    reward: str | None
    step_P: Int[np.ndarray, " P"]
    rewards: dict[str, Float[np.ndarray, " P"]]
    evaluation_P: Float[np.ndarray, " P"]

    def points(self, names: Sequence[str]) -> Float[np.ndarray, "P R"]:
        """The values of some rewards, side by side."""
        return np.stack([self.rewards[name] for name in names], axis=1)


def read_trajectories(
    given: Sequence[str], names: Sequence[str], evaluation: str, alone: bool = False
) -> list[Trajectory]:
    """Read runs.

    Args:
        given: run folders, or files of JSON lines `{"step": 10, REWARD: value, ..., EVALUATION: value}`; each SOURCE,
            or REWARD=SOURCE to say which reward the run optimized. That reward may also be called `proxy`, as in the
            points of `grmlight.evaluation.curves`.
        names: the rewards.
        evaluation: the name of the evaluation.
        alone: of a run that optimized one reward, read that one alone.

    Errors: ValueError in one line that names the run and what it lacks.
    """
    found = []
    for each in given:
        label, mark, source = each.partition("=")
        label, source = (label, source) if mark and not Path(each).exists() else (None, each)
        if label is not None and label not in names:
            raise ValueError(f"{each}: {label!r} is none of the rewards {', '.join(names)}")
        found.append(_read(Path(source), label, [label] if alone and label else names, evaluation))
    return found


def _read(source: Path, label: str | None, names: Sequence[str], evaluation: str) -> Trajectory:
    wanted = [*names, evaluation]
    rows = _rows_of_run(source, wanted) if source.is_dir() else _rows_of_file(source)
    if label is not None:
        rows = [{label: row["proxy"], **row} if "proxy" in row else row for row in rows]
    whole = [row for row in rows if all(isinstance(row.get(name), int | float) for name in ("step", *wanted))]
    if len(whole) < 2:
        known = sorted({name for row in rows for name in row} - {"step"})
        raise ValueError(
            f"{source}: {len(whole)} steps tell all of {', '.join(wanted)}, at least 2 must; it has "
            f"{', '.join(known) or 'nothing'}"
        )
    whole.sort(key=lambda row: row["step"])
    columns = {name: np.array([row[name] for row in whole], dtype=np.float64) for name in wanted}
    for name, values in columns.items():
        if not np.isfinite(values).all():
            step = whole[int(np.argmin(np.isfinite(values)))]["step"]
            raise ValueError(f"{source}: {name} is not finite at step {step}; leave the run out")
    steps = np.array([row["step"] for row in whole], dtype=np.int64)
    return Trajectory(str(source), label, steps, {name: columns[name] for name in names}, columns[evaluation])


def _rows_of_run(folder: Path, wanted: Sequence[str]) -> list[dict[str, float]]:
    log = folder / "metrics.csv"
    if not log.is_file():
        raise ValueError(
            f"{folder}: has no metrics.csv; name a run's folder (runs/NAME/version_K) or a file of JSON lines"
        )
    rows: dict[int, dict[str, float]] = {}
    for column, series in read_series(log).items():
        name = next((each for each in wanted if column in _columns(each)), None)
        for step, value in series if name else ():
            rows.setdefault(step, {"step": step})[str(name)] = value
    return list(rows.values())


def _columns(name: str) -> tuple[str, ...]:
    """How a run logs a reward: under the name itself, as one that it optimized, or as one that it watched."""
    return name, f"rollout/reward_{name}", f"rollout/watch_{name}"


def _rows_of_file(path: Path) -> list[dict[str, float]]:
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is no JSON ({error})") from error
        step = row.get("step") if isinstance(row, dict) else None
        if isinstance(step, bool) or not isinstance(step, int | float) or not math.isfinite(step):
            raise ValueError(
                f"{path}: line {number} has no step; give the curve of a training run, those of best-of-n have none"
            )
        rows.append(row)
    return rows
