"""Tables of runs as text, Markdown and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grmlight.data.files import remove, temporary_sibling, write_json, write_whole
from grmlight.evaluation.compare import TABLES, Cell, Line, Table
from grmlight.evaluation.compare_plot import plot
from grmlight.evaluation.published import PublishedRow
from grmlight.evaluation.run_files import Run

_COSTS = {"trainable_parameters": "trainable", "train_seconds": "train s", "scoring_passes": "passes"}
_COST_LEGEND = (
    "trainable: parameters that learn; train s: seconds of training; passes: forwards of a backbone for a reward"
)
_MARKS = {
    "text": {"": "{} ", "best": "{}*", "second": "{}+"},
    "markdown": {"": "{}", "best": "**{}**", "second": "*{}*"},
}
_LEGEND = {"text": "* best, + second of the runs", "markdown": "**best**, *second* of the runs"}


def as_text(tables: Sequence[Table]) -> str:
    """For a terminal."""
    return "\n\n".join(_text(table) for table in tables)


def as_markdown(tables: Sequence[Table]) -> str:
    """The same as Markdown."""
    return "\n\n".join(_markdown(table) for table in tables) + "\n"


def _text(table: Table) -> str:
    rows = [_header(table), *_rows(table, "text")]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([TABLES[table.name], lines[0], rule, *lines[1:], rule, *_notes(table, "text")])


def _markdown(table: Table) -> str:
    header = _header(table)
    rows = [header, ["---", *["---:"] * (len(header) - 1)], *_rows(table, "markdown")]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"## {TABLES[table.name]}", "", *lines, "", *(f"- {note}" for note in _notes(table, "markdown"))])


def _header(table: Table) -> list[str]:
    return ["", *(column.header for column in table.columns), *_COSTS.values()]


def _rows(table: Table, style: str) -> list[list[str]]:
    """A row a run; below it its difference to the first run, and the published row; last the first run's rulers."""
    rows: list[list[str]] = []
    for line in table.lines:
        cells = [_MARKS[style][cell.mark].format(_percent(cell)) for cell in line.cells]
        rows.append([line.run.label, *cells, *_costs(line.run)])
        if any(cell.difference for cell in line.cells):
            rows.append([f"  minus {table.lines[0].run.label}", *map(_difference, line.cells), *[""] * len(_COSTS)])
        elif line is table.lines[0] and any(cell.score and cell.score.low is not None for cell in line.cells):
            rows.append(["  95% interval", *map(_interval, line.cells), *[""] * len(_COSTS)])
        if line.published:
            rows.append(_published(line.published, table, ", other settings" if line.unlike else ""))
    rows += [_published(row, table) for row in table.around]
    for unit in ("tokens", "characters"):
        rulers = [_ruler(cell, unit) for cell in table.lines[0].cells]
        if any(ruler != "-" for ruler in rulers):
            rows.append([f"longer wins ({unit})", *rulers, *[""] * len(_COSTS)])
    return rows


def _ruler(cell: Cell, unit: str) -> str:
    score = cell.score
    return "-" if score is None or score.ruler is None or score.unit != unit else f"{100 * score.ruler:.1f}"


def _percent(cell: Cell) -> str:
    return f"{100 * cell.score.accuracy:.1f}" if cell.score else "-"


def _difference(cell: Cell) -> str:
    found = cell.difference
    if found is None:
        return "-"
    if math.isnan(found.low):
        return f"{100 * found.value:+.1f}"
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _interval(cell: Cell) -> str:
    score = cell.score
    return (
        "-"
        if score is None or score.low is None or score.high is None
        else f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"
    )


def _published(row: PublishedRow, table: Table, behind: str = "") -> list[str]:
    values = [row.values[column.name] for column in table.columns]
    shown = ["not found" if value is None else f"{value:.1f}" for value in values]
    return [f"  paper: {row.label} ({row.number}{behind})", *shown, *[""] * len(_COSTS)]


def _costs(run: Run) -> list[str]:
    values = [run.costs.get(name) for name in _COSTS]
    return [
        "-" if value is None else f"{value:,.1f}" if 0 < value < 10 and value % 1 else f"{value:,.0f}"
        for value in values
    ]


def _notes(table: Table, style: str) -> list[str]:
    notes = [f"accuracy in %; {_LEGEND[style]}"] if len(table.lines) > 1 else ["accuracy in %"]
    if any(cell.difference for line in table.lines for cell in line.cells):
        notes.append("differences in points, with 95% intervals of the paired bootstrap over prompts")
    if any(line.run.costs for line in table.lines):
        notes.append(_COST_LEGEND)
    for line in table.lines[1:]:
        notes += _row_notes(table, line)
    notes += [note for line in table.lines for note in _setting_note(line)]
    shown = [line.published for line in table.lines if line.published] + table.around
    notes += [f"paper, {source}" for source in dict.fromkeys(f"{row.number}: {row.source}" for row in shown)]
    oddities = (f"paper, {row.label} ({row.number}): {row.note}" for row in shown if row.note)
    return [*notes, *dict.fromkeys(oddities)]


def _setting_note(line: Line) -> list[str]:
    """What the published row beside a run has in another way."""
    row = line.published
    if row is None or line.unlike == [] or not any(row.values.values()):
        return []
    said = "with which hyperparameters is not known" if line.unlike is None else "; ".join(line.unlike)
    return [f"paper, {row.label} ({row.number}) beside {line.run.label}: {said}"]


def _row_notes(table: Table, line: Line) -> list[str]:
    """What stands between a run and a fair comparison with the first."""
    first, notes = table.lines[0].run, []
    for name in dict.fromkeys(column.set for column in table.columns):
        runs = [run for run in (first, line.run) if any(key[0] == name for key in run.scores)]
        lacking = [run.label for run in runs if name not in run.rows]
        if lacking:
            notes.append(
                f"{name}: {' and '.join(lacking)} kept no rows, so {line.run.label} is not paired with {first.label}"
            )
        elif len(runs) == 2:
            mine, others = ({row.row for row in run.rows[name].rows} for run in runs)
            if mine != others:
                left_out = [
                    f"{len(rows)} that {run.label} lacks"
                    for run, rows in ((line.run, mine - others), (first, others - mine))
                    if rows
                ]
                notes.append(
                    f"{name}: {line.run.label} minus {first.label} is over the {len(mine & others)} rows that both "
                    f"have; left out: {', '.join(left_out)}"
                )
    return [*notes, *_ruler_notes(table, line)]


def _ruler_notes(table: Table, line: Line) -> list[str]:
    """Where the run's ruler is not the one that the table shows: other rows, or a tokenizer that counts otherwise."""
    found = []
    for column, cell, shown in zip(table.columns, line.cells, table.lines[0].cells, strict=True):
        own = [_ruler(each, cell.score.unit) for each in (cell, shown)] if cell.score and shown.score else ["", ""]
        if own[0] != own[1]:
            found.append(f"{column.header} {own[0]}")
    return [f"longer wins of {line.run.label}, on its own rows and tokens: {', '.join(found)}"] if found else []


def as_json(tables: Sequence[Table]) -> dict[str, Any]:
    """Everything as plain values; accuracies and differences are shares, and NaN is null."""
    return {"tables": [_plain(table) for table in tables]}


def _plain(table: Table) -> dict[str, Any]:
    names = [column.name for column in table.columns]
    rows = []
    for line in table.lines:
        cells = {name: _plain_cell(cell) for name, cell in zip(names, line.cells, strict=True)}
        rows.append(
            {
                "kind": "run",
                "label": line.run.label,
                "folder": str(line.run.folder),
                "cells": cells,
                "costs": line.run.costs,
            }
        )
        if line.published:
            rows.append(_plain_published(line.published, beside=line.run.label) | {"unlike": line.unlike})
    rows += [_plain_published(row, beside=None) for row in table.around]
    notes = [note for line in table.lines[1:] for note in _row_notes(table, line)]
    return {"table": table.name, "first": table.lines[0].run.label, "columns": names, "rows": rows, "notes": notes}


def _plain_cell(cell: Cell) -> dict[str, Any] | None:
    if cell.score is None:
        return None
    found: dict[str, Any] = dataclasses.asdict(cell.score) | {"mark": cell.mark}
    if cell.difference is not None:
        found["difference"] = {name: _number(value) for name, value in cell.difference._asdict().items()}
    return found


def _plain_published(row: PublishedRow, beside: str | None) -> dict[str, Any]:
    values = {name: None if value is None else value / 100 for name, value in row.values.items()}
    cells = {name: None if value is None else {"accuracy": value} for name, value in values.items()}
    described = {"number": row.number, "source": row.source, "note": row.note, "beside": beside}
    return {"kind": "paper", "label": row.label, "cells": cells} | described


def write_comparison(
    tables: Sequence[Table], json: Path | None = None, markdown: Path | None = None, picture: Path | None = None
) -> None:
    """Write the files that are asked for, each whole or not at all.

    Errors: ValueError in one line for a name that cannot be written.
    """
    for path in (json, markdown, picture):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ValueError(f"{path}: name a file in a folder that exists")
    if picture is not None and picture.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{picture}: a picture ends with .png, .svg or .pdf")
    if json is not None:
        write_json(json, as_json(tables))
    if markdown is not None:
        write_whole(markdown, as_markdown(tables))
    if picture is not None:
        temporary = temporary_sibling(picture)
        try:
            plot(tables).savefig(temporary, dpi=120, format=picture.suffix.removeprefix("."))
            temporary.replace(picture)
        finally:
            remove(temporary)


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
