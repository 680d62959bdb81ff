"""Results of benchmarks as JSON, a table, Markdown and a picture."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grmlight.data.files import temporary_sibling, write_json, write_whole
from grmlight.evaluation.clustered import Interval
from grmlight.evaluation.evaluate import Result
from grmlight.evaluation.tally import ALL, AVERAGE, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVALUATION_FILE = "evaluation.json"
"""What a run directory keeps of its model's evaluation."""

_HEADER = ("benchmark", "category", "n", "accuracy", "95% interval", "longer wins (characters)", "ece", "length r")
_PACKAGES = ("grmlight", "torch", "transformers")


def as_json(model: str, results: Sequence[Result]) -> dict[str, Any]:
    """The results as plain values; a figure that is not defined is null.

    `rows` has a line a benchmark and category, `inputs` what was read of each benchmark.
    """
    return {
        "model": model,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in _PACKAGES},
        "rows": [_row(row) for result in results for row in result.rows],
        "inputs": [_input(result) for result in results],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "benchmark": row.benchmark,
        "category": row.category,
        "n": row.n,
        "accuracy": _number(row.accuracy.value),
        "low": _number(row.accuracy.low),
        "high": _number(row.accuracy.high),
        **_with_bounds("ruler", row.ruler),
        **_with_bounds("ece", row.ece),
        **_with_bounds("length_correlation", row.length_correlation),
    }


def _with_bounds(name: str, figure: Interval) -> dict[str, float | None]:
    return {
        name: _number(figure.value),
        f"{name}_low": _number(figure.low),
        f"{name}_high": _number(figure.high),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _input(result: Result) -> dict[str, Any]:
    reading = result.reading
    counts = {"rows": reading.rows, "used": len(reading.examples)}
    found = {"refused": reading.refused, "noted": reading.noted}
    return {"benchmark": result.rows[0].benchmark, "source": reading.source} | counts | found


def as_table(results: Sequence[Result]) -> str:
    """A table for the terminal, and below it the rows that were refused or noted."""
    lines = [_HEADER, *(_cells(row) for result in results for row in result.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    table = ["  ".join(_aligned(line, widths)) for line in lines]
    return "\n".join([table[0], "  ".join("-" * width for width in widths), *table[1:], *_findings(results)])


def as_markdown(model: str, results: Sequence[Result]) -> str:
    """The same as Markdown."""
    rule = ["---", "---", *["---:"] * (len(_HEADER) - 2)]
    lines = [_HEADER, rule, *(_cells(row) for result in results for row in result.rows)]
    table = [f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines]
    findings = [f"  - {line.strip()}" if line.startswith(" ") else f"- {line}" for line in _findings(results)]
    return "\n".join([f"# {model}", "", *table, "", *findings]).rstrip() + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if place < 2 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]


def _cells(row: Row) -> list[str]:
    interval = f"[{_shown(row.accuracy.low)}, {_shown(row.accuracy.high)}]"
    figures = [_shown(each.value) for each in (row.ruler, row.ece, row.length_correlation)]
    # A line break in a name would break the table.
    return [row.benchmark, " ".join(row.category.split()), str(row.n), _shown(row.accuracy.value), interval, *figures]


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _findings(results: Sequence[Result], shown: int = 5) -> list[str]:
    """A line a reason: how many rows, and the first ones."""
    lines = []
    for result in results:
        reading, name = result.reading, result.rows[0].benchmark
        lines.append(f"{name}: {reading.source}: {reading.rows} rows read, {len(reading.examples)} used")
        for kind, found in (("refused", reading.refused), ("noted", reading.noted)):
            for reason, rows in found.items():
                rest = ", ..." if len(rows) > shown else ""
                lines.append(f"  {kind} {len(rows)}: {reason.replace('_', ' ')} ({', '.join(rows[:shown])}{rest})")
    return lines


def plot(results: Sequence[Result]) -> Figure:
    """Accuracy with its interval for each category, a panel a benchmark; crosses are the ruler."""
    from matplotlib.figure import Figure

    heights = [len(result.rows) for result in results]
    figure = Figure(figsize=(8, 1 + 0.3 * sum(heights) + 0.6 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for panel, result in zip(panels, results, strict=True):
        names = [row.category or "-" for row in result.rows]
        values = [row.accuracy.value for row in result.rows]
        errors = [
            [_reach(row.accuracy.value - row.accuracy.low) for row in result.rows],
            [_reach(row.accuracy.high - row.accuracy.value) for row in result.rows],
        ]
        colors = ["C0" if row.category in (ALL, AVERAGE) else "C7" for row in result.rows]
        panel.barh(
            range(len(names)), values, xerr=errors, color=colors, error_kw={"lw": 1}, label="accuracy, 95% interval"
        )
        rulers = [row.ruler.value for row in result.rows]
        panel.plot(rulers, range(len(names)), "kx", markersize=5, label="longer wins (characters)")
        panel.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 1), title=result.rows[0].benchmark)
        panel.invert_yaxis()
    panels[-1].set_xlabel("accuracy")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _reach(value: float) -> float:
    return 0.0 if math.isnan(value) else max(value, 0.0)


def write(
    results: Sequence[Result],
    model: str,
    json: Path | None = None,
    markdown: Path | None = None,
    picture: Path | None = None,
) -> None:
    """Write the files that are asked for, each whole or not at all."""
    if json is not None:
        write_json(json, as_json(model, results))
    if markdown is not None:
        write_whole(markdown, as_markdown(model, results))
    if picture is not None:
        temporary = temporary_sibling(picture)
        try:
            plot(results).savefig(temporary, dpi=120, format=picture.suffix.lstrip(".") or "png")
            temporary.replace(picture)
        finally:
            temporary.unlink(missing_ok=True)
