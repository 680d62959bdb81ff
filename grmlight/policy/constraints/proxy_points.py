"""Proxy points: up to which value of each reward more of it still means more of what is wanted (Moskovitz et al. 2023).

Independent: each reward is optimized alone, without a penalty; its point is its value where the evaluation peaks.
Joint: a surface of the evaluation over all rewards is fitted to all runs; the point is its highest place where there
is data. Rewards that are correlated have a joint point that differs from the independent ones, and it works better in
the paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from grmlight.data.files import temporary_sibling
from grmlight.policy.constraints.surface import Surface, fit_surface, supported
from grmlight.policy.constraints.thresholds import write_thresholds
from grmlight.policy.constraints.trajectory import Trajectory, read_trajectories

Method = Literal["independent", "joint"]

STRETCHES = 5
"""Folds of a run: contiguous stretches, since neighboring steps are nearly the same."""
PLACES = 40_000
"""Places of the grid on which the joint point is searched, over all rewards together."""


@dataclasses.dataclass(frozen=True)
class Peak:
    """Where the evaluation of a run peaks.

    Attributes:
        run: the run's source.
        step: the step.
        value: the value of the reward that the run optimized.
        evaluation: the evaluation there.
        at_end: whether it is the last step, so that the peak may be further on.
    """

    run: str
    step: int
    value: float
    evaluation: float
    at_end: bool


@dataclasses.dataclass(frozen=True)
class JointPoint:
    """The highest place of the surface where there is data.

    Attributes:
        values: of each reward, by name.
        expected: the evaluation expected there.
        surface: the surface.
        share: share of the points that lie where data counts as too thin.
    """

    values: dict[str, float]
    expected: float
    surface: Surface
    share: float


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How the surface is fitted.

    Attributes:
        highest_degree: highest total degree of the polynomial tried; the paper's degree is 10.
        thin: share of the points, the most lonely ones, around which there is not data enough to believe the surface.
    """

    highest_degree: int = 10
    thin: float = 0.1

    def __post_init__(self) -> None:
        if self.highest_degree < 1 or not 0 <= self.thin < 1:
            raise ValueError(f"highest_degree must be at least 1, thin at least 0 and below 1, got {self}")


def independent_points(runs: Sequence[Trajectory], names: Sequence[str]) -> dict[str, list[Peak]]:
    """For each reward the peaks of the runs that optimized it; rewards without one are left out."""
    peaks: dict[str, list[Peak]] = {}
    for run in runs:
        if run.reward is not None and run.reward in names:
            place = int(run.evaluation_P.argmax())
            value, evaluation = float(run.rewards[run.reward][place]), float(run.evaluation_P[place])
            last = place == len(run.step_P) - 1
            peaks.setdefault(run.reward, []).append(Peak(run.source, int(run.step_P[place]), value, evaluation, last))
    return peaks


def joint_point(runs: Sequence[Trajectory], names: Sequence[str], options: FitOptions) -> JointPoint:
    """The highest place of the surface, on a grid over the rewards' box, where there is data.

    Errors: ValueError if the runs are too short or one of the rewards never moves.
    """
    points_PR = np.concatenate([run.points(names) for run in runs])
    values_P = np.concatenate([run.evaluation_P for run in runs])
    folds_P = np.concatenate([_stretches(len(run.step_P)) + STRETCHES * place for place, run in enumerate(runs)])
    for name, column in zip(names, points_PR.T, strict=True):
        if column.min() == column.max():
            raise ValueError(
                f"reward {name!r} is {column[0]:g} at every step of every run; leave it out, or train longer"
            )
    surface = fit_surface(points_PR, values_P, folds_P, options.highest_degree)
    grid_QR = grid(surface, max(2, int(PLACES ** (1 / len(names)))))
    expected_Q = np.where(supported(points_PR, grid_QR, options.thin), surface(grid_QR), -np.inf)
    best = int(expected_Q.argmax())
    if not np.isfinite(expected_Q[best]):
        raise ValueError("no place of the grid has data around it; lower `thin`, or train more runs")
    found = dict(zip(names, map(float, grid_QR[best]), strict=True))
    return JointPoint(found, float(expected_Q[best]), surface, options.thin)


def grid(surface: Surface, places: int) -> np.ndarray:
    """All places of a grid over the surface's box, so many along each reward."""
    axes = [np.linspace(low, high, places) for low, high in zip(surface.low, surface.high, strict=True)]
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


def proxy_points(
    given: Sequence[str],
    names: Sequence[str],
    evaluation: str,
    out: Path,
    method: Method = "joint",
    options: FitOptions | None = None,
) -> str:
    """Find proxy points, write them as `out` and their picture beside it, and say in a few lines what was found.

    Args:
        given: runs, as `read_trajectories` takes them.
        names: the rewards.
        evaluation: the name of the evaluation.
        out: the YAML file to write; the picture is the same name with `.png`.
        method: which points the thresholds are. The file tells the other ones too where there are any.
        options: of the surface.

    Errors: ValueError that names the run or the reward.
    """
    from grmlight.policy.constraints.picture import draw_proxy_points

    if len(set(names)) < len(names) or evaluation in names or not names:
        raise ValueError("the rewards must have different names, and the evaluation is none of them")
    runs = read_trajectories(given, names, evaluation, alone=method == "independent")
    peaks = independent_points(runs, names)
    if method == "independent" and (lacking := [name for name in names if name not in peaks]):
        raise ValueError(f"no run optimized {', '.join(lacking)} alone; name it as REWARD=RUN, or use --method joint")
    joint = joint_point(runs, names, options or FitOptions()) if method == "joint" else None
    thresholds = joint.values if joint else {name: _mean(peaks[name]) for name in names}
    write_thresholds(out, thresholds, _origin(method, evaluation, peaks, joint, runs))
    picture = out.with_suffix(".png")
    temporary = temporary_sibling(picture)
    draw_proxy_points(runs, names, evaluation, peaks, joint).savefig(temporary, dpi=120, format="png")
    temporary.replace(picture)
    return "\n".join([*_describe(thresholds, peaks, joint, evaluation), f"thresholds: {out}", f"picture: {picture}"])


def _mean(peaks: Sequence[Peak]) -> float:
    return float(np.mean([peak.value for peak in peaks]))


def _stretches(points: int) -> np.ndarray:
    return np.arange(points) * STRETCHES // points


def _origin(
    method: Method, evaluation: str, peaks: dict[str, list[Peak]], joint: JointPoint | None, runs: Sequence[Trajectory]
) -> dict[str, Any]:
    """Where each number came from, as plain values."""
    origin: dict[str, Any] = {"method": method, "evaluation": evaluation}
    if joint:
        origin["joint"] = {
            "expected_evaluation": joint.expected,
            "degree": joint.surface.degree,
            "held_out_error": joint.surface.error,
            "points": sum(len(run.step_P) for run in runs),
            "thin": joint.share,
            "runs": [run.source for run in runs],
        }
    if peaks:
        origin["independent"] = {
            name: {"threshold": _mean(found), "peaks": [dataclasses.asdict(peak) for peak in found]}
            for name, found in peaks.items()
        }
    return origin


def _describe(
    thresholds: dict[str, float], peaks: dict[str, list[Peak]], joint: JointPoint | None, evaluation: str
) -> list[str]:
    lines = [f"{name}: threshold {value:.4g}" for name, value in thresholds.items()]
    if joint:
        lines.append(
            f"{evaluation}: {joint.expected:.4g} expected there, by a surface of degree {joint.surface.degree} "
            f"(error {joint.surface.error:.2g} on points left out)"
        )
    return lines + [
        f"{peak.run}: {evaluation} is highest at the last step; {name} may be worth more still: train longer"
        for name, found in peaks.items()
        for peak in found
        if peak.at_end
    ]
