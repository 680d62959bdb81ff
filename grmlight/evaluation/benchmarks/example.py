"""What a benchmark is made of: groups of text with what is right, and the rows that are not used, by reason."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from grmlight.data.pairs import better_and_worse
from grmlight.data.texts import TextGroup, final_answer


@dataclasses.dataclass(frozen=True)
class Example:
    """A group of which one knows what is right.

    Attributes:
        row: where it comes from: the row's number, with the file's or the split's name where there are several.
        category: the part of the benchmark that it belongs to.
        group: the group; its first `correct` responses are right, the others wrong.
        correct: how many are right.
        ratings: of a ranking, a number a response: of two the one with the higher number is better, equal ones are not
            compared. `correct` means nothing then.
        prompt: the same for examples that are not independent; intervals are clustered by it.
        tied: in RewardBench 2's Ties subset, whether several answers are right.
    """

    row: str
    category: str
    group: TextGroup
    correct: int = 1
    prompt: str = ""
    tied: bool = False
    ratings: tuple[float, ...] = ()

    @property
    def levels(self) -> list[float]:
        """A number a response, of which the higher one is better."""
        return list(self.ratings) or [float(place < self.correct) for place in range(len(self.group.responses))]

    @property
    def comparisons(self) -> list[tuple[int, int]]:
        """Each two responses of which one is better, that one first."""
        return better_and_worse(self.levels)

    @property
    def counts(self) -> int:
        """What it counts among the rows: a ranking its comparisons, any other group 1."""
        return len(self.comparisons) if self.ratings else 1

    @property
    def lengths(self) -> list[int]:
        """Characters of each response's final answer."""
        return [len(final_answer(response)) for response in self.group.responses]


@dataclasses.dataclass
class Reading:
    """A benchmark as read.

    Attributes:
        source: where it was read.
        rows: rows seen; each is an example or refused, once.
        examples: the usable ones, in order.
        refused: reason to rows that are not used.
        noted: finding to rows that are used nevertheless, or to what is missing.
    """

    source: str
    rows: int = 0
    examples: list[Example] = dataclasses.field(default_factory=list)
    refused: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    noted: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def note(self, finding: str, row: str) -> None:
        """Remember a finding about a row."""
        self.noted.setdefault(finding, []).append(row)

    def refuse(self, reason: str, row: str) -> None:
        """Leave a row out."""
        self.refused.setdefault(reason, []).append(row)


class Refused(Exception):  # noqa: N818 - it is a verdict on a row, not an error of the program
    """A row that is not used; its text is the reason."""


def text(row: Mapping[str, Any], column: str) -> str:
    """The text in a column.

    Errors: Refused where there is none.
    """
    return checked(row.get(column))


def checked(value: Any) -> str:
    """A text that is not empty; `Refused` otherwise."""
    if not isinstance(value, str):
        raise Refused("non_string")
    if not value.strip():
        raise Refused("empty")
    return value


def cluster(group: TextGroup) -> str:
    """A prompt's name among clusters."""
    return json.dumps(group.prompt, sort_keys=True)


def pair(prompt: str | tuple[dict[str, str], ...], better: Any, worse: Any, source: str = "") -> TextGroup:
    """A pair as a group.

    Errors: Refused if both sides are the same.
    """
    if better == worse:
        raise Refused("identical")
    return TextGroup(prompt, (better, worse), source)


def missing(row: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    """Those of the columns that a row lacks."""
    return [column for column in columns if column not in row]
