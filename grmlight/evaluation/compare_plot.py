"""Tables of runs as a picture: a dot and its interval for each run, a panel a column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grmlight.evaluation.compare import Column, Line, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAPER = {False: "C1", True: "C7"}


def plot(tables: Sequence[Table]) -> Figure:
    """A row of panels a table; diamonds are published numbers, dashes "longer wins" of the first run."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    heights = [1.2 + 0.35 * len(table.lines) for table in tables]
    widest = max(len(table.columns) for table in tables)
    figure = Figure(figsize=(3 + 2.4 * widest, 0.6 + sum(heights)), layout="constrained")
    rows = figure.subfigures(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, table in zip(rows, tables, strict=True):
        panels = row.subplots(1, len(table.columns), squeeze=False, sharey=True)[0]
        for place, (panel, column) in enumerate(zip(panels, table.columns, strict=True)):
            _draw(panel, table, place, column)
        panels[0].set_yticks(range(len(table.lines)), [line.run.label for line in table.lines])
        panels[0].invert_yaxis()
    legend = [
        Line2D([], [], color="C0", marker="o", label="run, 95% interval"),
        Line2D([], [], color="C7", linestyle="--", label="longer wins"),
    ]
    beside = {bool(line.unlike) for table in tables for line in table.lines if line.published}
    for unlike, label in ((False, "paper"), (True, "paper, other settings")):
        if unlike in beside:
            color = _PAPER[unlike]
            legend.append(Line2D([], [], color=color, marker="D", markerfacecolor="none", linestyle="", label=label))
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), fontsize="small")
    return figure


def _draw(panel: Axes, table: Table, place: int, column: Column) -> None:
    for height, line in enumerate(table.lines):
        score = line.cells[place].score
        if score is not None:
            low, high = (100 * (score.accuracy if bound is None else bound) for bound in (score.low, score.high))
            panel.plot([low, high], [height, height], color="C0", lw=1.5)
            panel.plot([100 * score.accuracy], [height], "o", color="C0", markersize=6)
        if (value := _published(line, column)) is not None:
            panel.plot([value], [height], "D", color=_PAPER[bool(line.unlike)], markerfacecolor="none", markersize=6)
    first = table.lines[0].cells[place].score
    if first is not None and first.ruler is not None:
        panel.axvline(100 * first.ruler, color="C7", linestyle="--", lw=1)
    panel.set(title=column.header, xlabel="accuracy, %")
    panel.set_ylim(-0.6, len(table.lines) - 0.4)
    panel.grid(axis="x", alpha=0.3)


def _published(line: Line, column: Column) -> float | None:
    return line.published.values[column.name] if line.published else None
