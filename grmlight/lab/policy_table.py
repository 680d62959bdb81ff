"""What the runs of `policy_curves` come to: a row a method, of means over seeds with 95% intervals.

Every figure has up to two intervals. That of Student's t over seeds, the runs being what varies, stands for another
run of the method: other SFT rows, pairs, flips, proxy and draws. The percentile bootstrap over held-out prompts, of
means over seeds, stands for other prompts and these very runs.

The gold's loss after its peak is not taken from the highest of each run's own noisy points, which would make one of
nothing: a run's peak is where the other seeds' mean gold is highest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from grmlight.evaluation.curves import CurvePoint
from grmlight.lab.paired import summarize
from grmlight.lab.policy_runs import PromptPoint
from grmlight.policy.best_of_n.estimator import bootstrap_means

_DRAWS, _SEED = 2000, 0

Curves = Mapping[int, Sequence[CurvePoint]]
"""The points of a method's runs in their order, by seed."""

Prompts = Mapping[int, Sequence[PromptPoint]]
"""Their prompts' parts."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A mean over seeds.

    Attributes:
        mean: NaN if it is not defined.
        half: half the width of its interval over seeds; NaN with one seed.
        low, high: of its interval over prompts; NaN where there is none.
    """

    mean: float
    half: float
    low: float = math.nan
    high: float = math.nan


@dataclasses.dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        method: its name.
        seeds: its runs.
        kl: at the end, nats an answer.
        proxy_start, proxy_end: mean rewards.
        gold_start, gold_end: likewise.
        gained: gold at the end minus gold at the start.
        lost: gold at the end minus gold at the peak: below 0 is over-optimization.
        proxy_meanwhile: what the proxy did from the peak to the end.
    """

    method: str
    seeds: int
    kl: Figure
    proxy_start: Figure
    proxy_end: Figure
    gold_start: Figure
    gold_end: Figure
    gained: Figure
    lost: Figure
    proxy_meanwhile: Figure


def row_of(method: str, curves: Curves, prompts: Prompts) -> Row:
    """A method's row; its runs are measured at the same steps or sizes, by the same estimator of the KL."""
    first, last = (dict.fromkeys(curves, at) for at in (0, -1))
    peaks = _peaks(curves)

    def plain(value: Callable[[CurvePoint], float], at: Mapping[int, int]) -> Figure:
        return _over_seeds([value(curve[at[seed]]) for seed, curve in curves.items()])

    def change(name: str, since: Mapping[int, int]) -> Figure:
        """Of proxy or gold, to the end."""
        if not since:
            return Figure(math.nan, math.nan)
        values = [getattr(curve[-1], name) - getattr(curve[since[seed]], name) for seed, curve in curves.items()]
        low, high = _over_prompts(curves, prompts, name, since)
        return dataclasses.replace(_over_seeds(values), low=low, high=high)

    return Row(
        method,
        len(curves),
        kl=plain(lambda point: point.kl, last),
        proxy_start=plain(lambda point: point.proxy, first),
        proxy_end=plain(lambda point: point.proxy, last),
        gold_start=plain(lambda point: point.gold, first),
        gold_end=plain(lambda point: point.gold, last),
        gained=change("gold", first),
        lost=change("gold", peaks),
        proxy_meanwhile=change("proxy", peaks),
    )


def as_markdown(rows: Sequence[Row]) -> str:
    """The table; a figure that is not defined is a dash."""
    lines = [
        "| method | seeds | KL, nats | proxy: start | end | gold: start | end | gold gained | over prompts "
        "| gold lost after its peak | over prompts | proxy meanwhile |",
        "|---|" + "---|" * 11,
    ]
    for row in rows:
        cells = [row.method, str(row.seeds), _with_interval(row.kl)]
        cells += [_number(each.mean) for each in (row.proxy_start, row.proxy_end, row.gold_start, row.gold_end)]
        for each in (row.gained, row.lost):
            cells += [_with_interval(each), _bracketed(each.low, each.high)]
        lines.append(f"| {' | '.join([*cells, _with_interval(row.proxy_meanwhile)])} |")
    return "\n".join(lines) + "\n"


def _peaks(curves: Curves) -> dict[int, int]:
    """For each seed the number of the point at which the other seeds' mean gold is highest; none of one seed."""
    if len(curves) < 2:
        return {}
    golds = {seed: np.array([point.gold for point in curve]) for seed, curve in curves.items()}
    return {
        seed: int(np.argmax(np.mean([gold for other, gold in golds.items() if other != seed], axis=0)))
        for seed in curves
    }


def _over_seeds(values: Sequence[float]) -> Figure:
    if len(values) < 2:
        return Figure(values[0], math.nan)
    return Figure(*summarize([[value] for value in values]))


def _over_prompts(curves: Curves, prompts: Prompts, name: str, since: Mapping[int, int]) -> tuple[float, float]:
    """The interval of the change of means over seeds; prompts that some run has no value for are left out."""
    found: dict[int, list[float]] = {}
    for seed, curve in curves.items():
        before, after = (_values(prompts[seed], curve[at], name) for at in (since[seed], -1))
        for prompt in before.keys() & after.keys():
            found.setdefault(prompt, []).append(after[prompt] - before[prompt])
    whole = [np.mean(found[prompt]) for prompt in sorted(found) if len(found[prompt]) == len(curves)]
    known = np.array([each for each in whole if math.isfinite(each)])
    if len(known) < 2:
        return math.nan, math.nan
    low, high = np.percentile(bootstrap_means(known[:, None], _DRAWS, _SEED), [2.5, 97.5])
    return float(low), float(high)


def _values(points: Sequence[PromptPoint], at: CurvePoint, name: str) -> dict[int, float]:
    place = at.step if at.n is None else at.n
    return {point.prompt: getattr(point, name) for point in points if point.place == place}


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _bracketed(low: float, high: float) -> str:
    return f"[{low:.2f}, {high:.2f}]" if math.isfinite(low) else "-"


def _with_interval(figure: Figure) -> str:
    interval = _bracketed(figure.mean - figure.half, figure.mean + figure.half)
    return _number(figure.mean) + ("" if interval == "-" else f" {interval}")
