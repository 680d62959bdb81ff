"""Best-of-n's curves as text and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from grmlight.evaluation.curves import CurvePoint, curves_of, summarize

_HEADER = ("n", "KL", "proxy", "gold", "95% interval")


def as_text(points: Sequence[CurvePoint]) -> str:
    """A table a method, of the powers of two and the last n; proxy and gold are differences to n = 1."""
    return "\n\n".join("\n".join([_title(curve), *_aligned([_HEADER, *_rows(curve)])]) for curve in curves_of(points))


def as_markdown(points: Sequence[CurvePoint], notes: Sequence[str]) -> str:
    """The same with notes in front and the summary of all methods."""
    tables = [
        f"## {curve[0].method}\n\n" + _table([_HEADER, *_rows(curve)], len(_HEADER)) for curve in curves_of(points)
    ]
    return "\n\n".join(["# Best of n", "\n".join(f"- {note}" for note in notes), summary_table(points), *tables]) + "\n"


def summary_table(points: Sequence[CurvePoint]) -> str:
    """Peak, final, drop and d at the peak of each method, as Markdown."""
    header = ("method", "peak", "d at peak", "final", "drop", "proxy at the end")
    rows = [
        (each.method, *map(_number, (each.peak, each.d_at_peak, each.final, each.drop, each.proxy_final)))
        for each in summarize(points)
    ]
    return _table([header, *rows], len(header))


def _title(curve: Sequence[CurvePoint]) -> str:
    (found,) = summarize(curve)
    if math.isnan(found.peak):
        return f"{found.method}: no gold"
    return f"{found.method}: gold peaks at {found.peak:+.3f} (d = {found.d_at_peak:.2f}), ends at {found.final:+.3f}"


def _rows(curve: Sequence[CurvePoint]) -> list[tuple[str, ...]]:
    shown = [point for point in curve if point is curve[-1] or (point.n or 0).bit_count() == 1]
    return [
        (str(point.n), f"{point.kl:.2f}", _number(point.proxy), _number(point.gold), _interval(point))
        for point in shown
    ]


def _interval(point: CurvePoint) -> str:
    low, high = point.interval
    return "" if math.isnan(low) else f"[{low:+.3f}, {high:+.3f}]"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(map(str.rjust, row, widths)) for row in rows]


def _table(rows: Sequence[Sequence[str]], columns: int) -> str:
    lines = [rows[0], ["---:"] * columns, *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
