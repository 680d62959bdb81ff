"""Proxy points and the surface they are read from, as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from grmlight.policy.constraints.proxy_points import JointPoint, Peak
from grmlight.policy.constraints.surface import supported
from grmlight.policy.constraints.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

_PLACES = 80


def draw_proxy_points(
    runs: Sequence[Trajectory],
    names: Sequence[str],
    evaluation: str,
    peaks: dict[str, list[Peak]],
    joint: JointPoint | None,
) -> Figure:
    """A panel a reward, the evaluation against it with the independent points; one a pair of rewards for the surface.

    A panel of a pair shows the surface where there is data, the other rewards being at the joint point.
    """
    from matplotlib.figure import Figure

    pairs = list(itertools.combinations(range(len(names)), 2)) if joint else []
    count = len(names) + len(pairs)
    columns = min(count, 4)
    figure = Figure(figsize=(4.6 * columns, 3.8 * -(-count // columns)), layout="constrained")
    panels = [figure.add_subplot(-(-count // columns), columns, place + 1) for place in range(count)]
    for panel, name in zip(panels, names, strict=False):
        _draw_reward(panel, runs, name, peaks.get(name, []), joint)
        panel.set(xlabel=name, ylabel=evaluation)
    for panel, pair in zip(panels[len(names) :], pairs, strict=True):
        assert joint
        shades = _draw_pair(panel, runs, names, pair, joint)
        figure.colorbar(shades, ax=panel, label=f"{evaluation}, fitted")
    return figure


def _draw_reward(
    panel: Axes, runs: Sequence[Trajectory], name: str, peaks: Sequence[Peak], joint: JointPoint | None
) -> None:
    for run in (each for each in runs if name in each.rewards):
        alone = run.reward == name
        panel.plot(run.rewards[name], run.evaluation_P, marker=".", lw=1, alpha=0.9 if alone else 0.35)
    for peak in peaks:
        panel.plot(peak.value, peak.evaluation, "*", color="black", markersize=11)
    if peaks:
        panel.axvline(float(np.mean([peak.value for peak in peaks])), color="black", lw=1, label="independent")
    if joint:
        panel.axvline(joint.values[name], color="C3", lw=1, linestyle="--", label="joint")
    if peaks or joint:
        panel.legend(fontsize="small", loc="upper left")
    panel.grid(alpha=0.3)


def _draw_pair(
    panel: Axes, runs: Sequence[Trajectory], names: Sequence[str], pair: tuple[int, int], joint: JointPoint
) -> QuadMesh:
    surface, (across, up) = joint.surface, pair
    xs = np.linspace(surface.low[across], surface.high[across], _PLACES)
    ys = np.linspace(surface.low[up], surface.high[up], _PLACES)
    places = np.tile([joint.values[name] for name in names], (_PLACES * _PLACES, 1))
    places[:, across], places[:, up] = (axis.ravel() for axis in np.meshgrid(xs, ys))
    points = np.concatenate([run.points(names) for run in runs])
    height = np.where(supported(points, places, joint.share), surface(places), np.nan).reshape(_PLACES, _PLACES)
    shades = panel.pcolormesh(xs, ys, height, shading="nearest")
    for run in runs:
        panel.plot(run.rewards[names[across]], run.rewards[names[up]], ".", color="black", markersize=3, alpha=0.6)
    panel.plot(joint.values[names[across]], joint.values[names[up]], "*", color="C3", markersize=13, label="joint")
    panel.set(xlabel=names[across], ylabel=names[up], title=f"degree {surface.degree}")
    panel.legend(fontsize="small", loc="upper left")
    return shades
