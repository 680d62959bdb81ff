"""Runs side by side: the papers' tables, with paired differences to the first run and the published rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

from grmlight.evaluation.paired_bootstrap import DRAWS, Difference, paired_difference
from grmlight.evaluation.published import COLUMNS, PublishedRow, Setting, row_beside, rows_around, setting_of
from grmlight.evaluation.published_recipe import differences
from grmlight.evaluation.rows import Row, Rows
from grmlight.evaluation.run_files import Run, Score, category
from grmlight.evaluation.tally import ALL, AVERAGE

TableName = Literal["preference", "rewardbench", "sets"]
Published = Literal["matching", "all", "none"]
Mark = Literal["", "best", "second"]

TABLES: dict[str, str] = {
    "preference": "Unified-Feedback / HHH / MT-Bench, the shape of the GRM paper's Tables 1, 2 and 7",
    "rewardbench": "RewardBench by section, the shape of its Tables 3, 4 and 5",
    "sets": "The sets that the runs were evaluated on",
}
"""The tables there are, and what heads them."""

_HEADERS = {"unified_feedback": "Unified-Feedback", "hhh": "HHH", "mtbench": "MT-Bench", "chat_hard": "Chat-Hard"}


class Column(NamedTuple):
    """A column of a table: a set or benchmark, and its category.

    Attributes:
        set, category: as in `Run.scores`.
        name: as in the file of published numbers.
        header: what the table calls it.
    """

    set: str
    category: str
    name: str
    header: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run's result in a column.

    Attributes:
        score: None where the run was not evaluated on it.
        difference: to the first run; None for the first run itself, and where one of both keeps no rows.
        mark: whether it is the best or second of the runs.
    """

    score: Score | None
    difference: Difference | None = None
    mark: Mark = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """A run in a table, and the published row of its setting.

    Attributes:
        run: the run.
        cells: one a column.
        published: the row, if there is one.
        unlike: in what the run differs from the row: "epochs 2, here 1"; None where the row's recipe is not known.
    """

    run: Run
    cells: list[Cell]
    published: PublishedRow | None
    unlike: list[str] | None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: a key of `TABLES`.
        columns: its columns.
        lines: a run each, in the order given.
        around: published rows beside those of the lines.
    """

    name: str
    columns: list[Column]
    lines: list[Line]
    around: list[PublishedRow]


def compare(
    runs: Sequence[Run], table: TableName | None = None, published: Published = "matching", draws: int = DRAWS
) -> list[Table]:
    """The tables that the runs have results for, or the one that is asked for.

    Args:
        runs: one or more; differences are to the first.
        table: the only table; None for all.
        published: published rows of the runs' own settings, all rows on their base models and data, or none.
        draws: of the bootstrap.

    Errors: ValueError in one line if the runs were evaluated on different sets, or on different data of one name.
    """
    names = [name for name in TABLES if table in (None, name) and any(_present(run, name) for run in runs)]
    if not names:
        what = f"for the table {table!r}" if table else "to compare"
        raise ValueError(
            f"{', '.join(run.label for run in runs)}: no result {what}; evaluate them with `grmlight evaluate`"
        )
    return [_table(name, list(runs), published, draws) for name in names]


def _table(name: str, runs: list[Run], published: Published, draws: int) -> Table:
    _check_sets(name, runs)
    columns = _columns(name, runs[0])
    for column in columns:
        _check_data(column.set, runs)
    settings = [setting_of(run.config) if published != "none" else None for run in runs]
    cells = [[_cell(run, runs[0], column, draws) for column in columns] for run in runs]
    marks = [_marks([line[place].score for line in cells]) for place in range(len(columns))]
    lines = [
        Line(
            run,
            [dataclasses.replace(cell, mark=marks[place][number]) for place, cell in enumerate(cells[number])],
            row := row_beside(name, settings[number]),
            _unlike(row, settings[number], run),
        )
        for number, run in enumerate(runs)
    ]
    return Table(name, columns, lines, _around(name, settings, lines) if published == "all" else [])


def _unlike(row: PublishedRow | None, setting: Setting | None, run: Run) -> list[str] | None:
    if row is None or setting is None:
        return []
    head = [] if row.has_head_of(setting) else [f"head {row.setting.head}, here {setting.head}"]
    found = differences(row.number, run.config)
    return head + found if found is not None else head or None


def _around(name: str, settings: list[Setting | None], lines: list[Line]) -> list[PublishedRow]:
    beside = [line.published for line in lines]
    return [row for row in rows_around(name, [each for each in settings if each]) if row not in beside]


def _columns(name: str, run: Run) -> list[Column]:
    """The papers' columns whether or not the runs have them; of other sets those that the first run has."""
    if name == "sets":
        return [Column(each, part, each, each) for each, part in _present(run, name)]
    return [
        Column(each, part, column, _HEADERS.get(column) or column.capitalize())
        for (each, part), column in zip(_keys(name), COLUMNS[name], strict=True)
    ]


def _keys(name: str) -> list[tuple[str, str]]:
    if name == "rewardbench":
        return [(name, column) for column in COLUMNS[name]]
    return [(column, ALL) for column in COLUMNS[name]]


def _present(run: Run, name: str) -> list[tuple[str, str]]:
    """What a run has for a table."""
    if name != "sets":
        return [key for key in _keys(name) if key in run.scores]
    taken = {*COLUMNS["preference"], "rewardbench"}
    return [(each, part) for each, part in run.scores if each not in taken and part in (ALL, AVERAGE)]


def _check_sets(name: str, runs: list[Run]) -> None:
    everywhere = list(dict.fromkeys(key for run in runs for key in _present(run, name)))
    for run in runs:
        lacking = dict.fromkeys(each for each, part in everywhere if (each, part) not in _present(run, name))
        if lacking:
            owner = next(other for other in runs if any(key[0] in lacking for key in _present(other, name)))
            raise ValueError(
                f"runs were evaluated on different sets: {run.label} has no result on {', '.join(lacking)}, which "
                f"{owner.label} has; evaluate it too, or choose a table that all of them have with --table"
            )


def _check_data(name: str, runs: list[Run]) -> None:
    known = [(run, run.rows[name]) for run in runs if name in run.rows]
    for run, rows in known[1:]:
        first, expected = known[0]
        if rows.fingerprint != expected.fingerprint:
            raise ValueError(
                f"{name} is other data in {run.label} ({rows.source}) than in {first.label} ({expected.source}); "
                "evaluate both on one file, or name the sets apart"
            )
        if not _shared(rows.rows, expected.rows):
            raise ValueError(
                f"{first.label} and {run.label} have no row of {name} in common; evaluate both on the same data"
            )


def _shared(one: list[Row], other: list[Row]) -> set[str]:
    return {row.row for row in one} & {row.row for row in other}


def _cell(run: Run, first: Run, column: Column, draws: int) -> Cell:
    score, name = run.scores.get((column.set, column.category)), column.set
    if score is None or run is first or name not in run.rows or name not in first.rows:
        return Cell(score)
    parts = [part for part in _parts(first.rows[name], run.rows[name], column.category) if _shared(*part)]
    return Cell(score, paired_difference(parts, draws) if parts else None)


def _parts(first: Rows, second: Rows, wanted: str) -> list[tuple[list[Row], list[Row]]]:
    """The rows of both runs for a category: all, one part a category for an average, or those of the category."""
    if wanted == ALL:
        return [(first.rows, second.rows)]
    found = dict.fromkeys(category(row.category) for row in first.rows)
    names = found if wanted == AVERAGE else [name for name in found if name == wanted]

    def of(rows: Rows, name: str) -> list[Row]:
        return [row for row in rows.rows if category(row.category) == name]

    return [(of(first, name), of(second, name)) for name in names]


def _marks(scores: list[Score | None]) -> list[Mark]:
    """The best and the second of the runs, by what the table shows; equal ones share a mark."""
    shown = [None if score is None else f"{100 * score.accuracy:.1f}" for score in scores]
    order = sorted({float(each) for each in shown if each is not None}, reverse=True)
    if sum(each is not None for each in shown) < 2:
        return [""] * len(scores)
    places: dict[float, Mark] = dict(zip(order, ("best", "second"), strict=False))
    return ["" if each is None else places.get(float(each), "") for each in shown]
