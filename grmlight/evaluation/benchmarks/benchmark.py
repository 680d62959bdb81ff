"""Benchmark: what it reads, and how its rows are put together."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from grmlight.evaluation.benchmarks.example import Example, Reading, Refused, cluster, missing
from grmlight.evaluation.benchmarks.rows import SourceRow, hub_rows, local_copy, source_rows
from grmlight.evaluation.rows import Row as KeptRow
from grmlight.evaluation.tally import Bootstrap, Row, Scored, pair_rows


class Benchmark(ABC):
    """A benchmark of which one knows the format and the score.

    Attributes:
        name: as the command line takes it.
        hub: the hub's data sets by part, each `NAME[@CONFIG][:SPLIT]` or `hf://...`.
        columns: what a row must have.
        equal: what a pair with equal rewards counts.
        files: what a user shall give, for messages.
    """

    name: str
    hub: ClassVar[tuple[tuple[str, str], ...]]
    columns: ClassVar[tuple[str, ...]]
    equal: ClassVar[float] = 0.0
    files: ClassVar[str] = "the benchmark's own files"

    @abstractmethod
    def example(self, row: Mapping[str, Any], part: str, reading: Reading, label: str) -> Example:
        """The example that a row is. `Refused` if it cannot be used; findings go to the reading."""

    def read(self, source: str | None = None) -> Reading:
        """Read a local copy, or the hub's data set.

        Errors: ValueError in one line for what is missing, of another format, or holds no usable row.
        """
        reading = Reading(source or ", ".join(source for _, source in self.hub))
        for label, part, values in self._source_rows(source, reading):
            reading.rows += 1
            self._take(reading, label, part, values)
        if not reading.examples:
            raise ValueError(f"{self.name}: {reading.source}: {why_nothing(reading)}")
        self.check(reading)
        return reading

    def _source_rows(self, source: str | None, reading: Reading) -> Iterator[SourceRow]:
        if not source:
            return hub_rows(self.hub, self.name)
        if not self.hub and not Path(source).exists():
            return source_rows(source)
        copy = local_copy(Path(source), self.hub)
        for file in copy.left_out:
            reading.note("file_of_another_split", file)
        return copy.rows()

    def _take(self, reading: Reading, label: str, part: str, values: dict[str, Any] | None) -> None:
        if values is None:
            reading.refuse("invalid_json", label)
            return
        if absent := self.missing(values):
            if reading.rows == 1:
                raise ValueError(
                    f"{self.name}: {reading.source}: row {label} has the columns {', '.join(values) or 'of nothing'}, "
                    f"not {', '.join(absent)}; give {self.files}"
                )
            reading.refuse("missing_columns", label)
            return
        try:
            found = self.example(values, part, reading, label)
        except Refused as verdict:
            reading.refuse(str(verdict), label)
            return
        reading.examples.append(found if found.prompt else dataclasses.replace(found, prompt=cluster(found.group)))

    def missing(self, values: Mapping[str, Any]) -> list[str]:
        """Columns that a row lacks."""
        return missing(values, self.columns)

    def check(self, reading: Reading) -> None:
        """Look at all examples together; findings go to the reading."""
        return

    def kept(self, example: Example, rewards: Sequence[float]) -> KeptRow | None:
        """What a paired comparison of two models needs of a pair or a ranking; None where the score is no sum."""
        sides = [(rewards[better], rewards[worse]) for better, worse in example.comparisons]
        right = sum(self.equal if better == worse else float(better > worse) for better, worse in sides)
        prompt = hashlib.sha256(example.prompt.encode()).hexdigest()[:16]
        return KeptRow(example.row, prompt, right, float(len(sides)), category=example.category)

    def weighed(self, rows: Sequence[KeptRow]) -> list[KeptRow]:
        """All kept rows with the weights by which they add up to the score."""
        return list(rows)

    def rows(self, scored: Scored, bootstrap: Bootstrap) -> list[Row]:
        """The result's rows: each category, and all of them together."""
        return pair_rows(self.name, scored, bootstrap, self.equal)


def why_nothing(reading: Reading) -> str:
    """Why no row is left."""
    if not reading.rows:
        return "is empty; give JSON lines, one object a line"
    refused = ", ".join(f"{len(rows)} {reason.replace('_', ' ')}" for reason, rows in reading.refused.items())
    advice = "; give JSON lines, one object a line" if "invalid_json" in reading.refused else ""
    return f"none of its {reading.rows} rows can be used (refused: {refused}){advice}"


def counted(reading: Reading) -> Iterator[tuple[str, int]]:
    """Examples of each category, in the order of their first one."""
    counts: dict[str, int] = {}
    for example in reading.examples:
        counts[example.category] = counts.get(example.category, 0) + 1
    yield from counts.items()
