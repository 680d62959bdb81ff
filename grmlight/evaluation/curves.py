"""Proxy and gold against KL: the one record of a point, its file, its summary and its picture.

A curve is what one optimization passes through: best-of-n over n, a training run over its steps, or runs that differ in
beta alone. Its points carry the KL to the initial policy in nats, and the name of what measured it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grmlight.data.files import temporary_sibling, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NORMAL_95 = 1.96


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """A point of a curve.

    Attributes:
        study: what was asked, as a directory or a title.
        method: what was optimized against, and how.
        seed: of the run.
        step: optimizer steps so far, of a training run.
        n: answers to choose from, of best-of-n.
        beta: the strength of what holds the policy back, if anything does.
        kl: KL(policy || initial policy), nats a prompt.
        kl_estimator: what gave it: `analytic`, `k1`, `k2` or `k3`.
        proxy: mean of the reward that is optimized.
        gold: mean of the reward that stands for people; NaN where it was not asked.
        standard_error: of `gold`; NaN where it is not known.
        low, high: 95% interval of `gold`; None where only the standard error is known.
    """

    study: str
    method: str
    seed: int
    step: int | None
    n: int | None
    beta: float | None
    kl: float
    kl_estimator: str
    proxy: float
    gold: float
    standard_error: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the gold; normal where only the standard error is known."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        return self.gold - _NORMAL_95 * self.standard_error, self.gold + _NORMAL_95 * self.standard_error


@dataclasses.dataclass(frozen=True)
class CurveSummary:
    """What a curve comes to.

    Attributes:
        study, method, seed, beta: of its points; beta is None for a curve over several.
        peak: the highest gold.
        final: the last gold.
        drop: peak - final, which is over-optimization.
        d_at_peak: sqrt(KL) at the peak; 0 where an estimate of the KL is negative.
        proxy_final: the last proxy.
    """

    study: str
    method: str
    seed: int
    beta: float | None
    peak: float
    final: float
    drop: float
    d_at_peak: float
    proxy_final: float


def curves_of(points: Iterable[CurvePoint]) -> list[list[CurvePoint]]:
    """The points of each curve in its order: by n or step where they have one, else by KL."""
    found: dict[tuple[Any, ...], list[CurvePoint]] = {}
    for point in points:
        over_beta = point.n is None and point.step is None
        found.setdefault((point.study, point.method, point.seed, None if over_beta else point.beta), []).append(point)
    return [sorted(curve, key=_place) for curve in found.values()]


def summarize(points: Iterable[CurvePoint]) -> list[CurveSummary]:
    """Peak, final, drop and d at the peak of each curve, over its points with gold; NaN where it has none."""
    return [_summary(curve) for curve in curves_of(points)]


def write_curves(path: Path, points: Iterable[CurvePoint]) -> None:
    """Write a JSON line a point, whole or not at all; what is not finite becomes null."""
    rows = (
        {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in dataclasses.asdict(point).items()
        }
        for point in points
    )
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_curves(path: Path) -> list[CurvePoint]:
    """Read what `write_curves` wrote. Errors: ValueError that names the file and the line."""
    with path.open(encoding="utf-8") as file:
        return [_read(line, f"{path}: line {number}") for number, line in enumerate(file, 1)]


def plot_curves(points: Sequence[CurvePoint], path: Path | None = None) -> Figure:
    """Gold (solid, with its 95% interval) and proxy (dashed) against KL, a color a method.

    The KL axis is linear in d = sqrt(KL), in which the papers' curves are written.

    Args:
        points: of any number of curves; their studies become panels.
        path: where to write the picture, if anywhere: .png, .svg or .pdf.
    """
    from matplotlib.figure import Figure

    studies = list(dict.fromkeys(point.study for point in points)) or [""]
    figure = Figure(figsize=(7 * len(studies), 4.5), layout="constrained")
    panels = figure.subplots(1, len(studies), squeeze=False)[0]
    for panel, study in zip(panels, studies, strict=True):
        _draw(panel, [point for point in points if point.study == study])
        panel.set(title=study)
    if path is not None:
        temporary = temporary_sibling(path)
        figure.savefig(temporary, dpi=120, format=path.suffix.removeprefix(".") or "png")
        temporary.replace(path)
    return figure


def _place(point: CurvePoint) -> float:
    if point.n is not None:
        return point.n
    return point.kl if point.step is None else point.step


def _summary(curve: list[CurvePoint]) -> CurveSummary:
    first, known = curve[0], [point for point in curve if math.isfinite(point.gold)]
    beta = first.beta if all(point.beta == first.beta for point in curve) else None
    nothing = dataclasses.replace(first, gold=math.nan, kl=math.nan)
    best, last = (max(known, key=lambda point: point.gold), known[-1]) if known else (nothing, nothing)
    return CurveSummary(
        first.study,
        first.method,
        first.seed,
        beta,
        peak=best.gold,
        final=last.gold,
        drop=best.gold - last.gold,
        d_at_peak=math.sqrt(0.0 if best.kl < 0 else best.kl),
        proxy_final=curve[-1].proxy,
    )


_NAMES = [field.name for field in dataclasses.fields(CurvePoint)]
_MAY_BE_UNKNOWN = ("kl", "proxy", "gold", "standard_error")


def _read(line: str, where: str) -> CurvePoint:
    try:
        found = json.loads(line)
        found |= {name: math.nan for name in _MAY_BE_UNKNOWN if found[name] is None}
        return CurvePoint(**found)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where} is no curve point ({error}); it has {', '.join(_NAMES)}") from error


def _draw(panel: Axes, points: list[CurvePoint]) -> None:
    colors: dict[tuple[str, float | None], str] = {}
    for curve in curves_of(points):
        first = curve[0]
        beta = first.beta if all(point.beta == first.beta for point in curve) else None
        fresh = (first.method, beta) not in colors
        color = colors.setdefault((first.method, beta), f"C{len(colors) % 10}")
        label = first.method if beta is None else f"{first.method}, beta {beta:g}"
        kl = [point.kl for point in curve]
        lows, highs = zip(*(point.interval for point in curve), strict=True)
        panel.fill_between(kl, lows, highs, color=color, alpha=0.15, linewidth=0)
        mark = "." if len(curve) < 20 else None
        panel.plot(kl, [point.gold for point in curve], color=color, marker=mark, label=label if fresh else None)
        panel.plot(kl, [point.proxy for point in curve], color=color, marker=mark, linestyle="--", linewidth=1)
    panel.set_xscale("function", functions=(_root, _square))
    panel.set(xlabel="KL to the initial policy, nats", ylabel="gold (solid), proxy (dashed)")
    panel.grid(alpha=0.3)
    if panel.lines:
        panel.legend(fontsize="small")


def _root(values: Any) -> Any:
    return np.sqrt(np.maximum(values, 0.0))


def _square(values: Any) -> Any:
    return values**2
