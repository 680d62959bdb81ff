"""The usable rows of a source as text, with what stores keep of them: for tools that read rather than train."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from grmlight._data_rs import read_pairs
from grmlight.data.prepare import why_nothing
from grmlight.data.render import Message
from grmlight.data.source import pair_source
from grmlight.data.texts import Response, TextGroup


@dataclasses.dataclass(frozen=True)
class TextRow:
    """A row as text.

    Attributes:
        row: its number in the source.
        id: its `id`, or the row's number.
        group: a pair, the side that is named chosen first, or a ranking in the row's order.
        comparisons: for each comparison the places of the better and the worse response.
    """

    row: int
    id: str
    group: TextGroup
    comparisons: list[tuple[int, int]]


def text_rows(source: str) -> tuple[list[TextRow], dict[str, Any]]:
    """All usable rows of a source, in its order, and what was found.

    Args:
        source: see `grmlight.data.source`.

    Returns:
        The rows; and rows, used, comparisons, refused {reason: [row]} and noted {finding: [row]}.

    Errors: ValueError in one line for what cannot be found or read, or holds no usable row.
    """
    pairs = read_pairs(pair_source(source), {"name": source})
    found = [
        TextRow(pairs.row(index), pairs.id(index), as_group(*pairs.group(index)), sorted(pairs.comparisons(index)))
        for index in range(len(pairs))
    ]
    counted = {"rows": pairs.rows, "used": len(found), "comparisons": sum(len(each.comparisons) for each in found)}
    report = counted | {"refused": pairs.refused, "noted": pairs.noted}
    if not found:
        raise ValueError(f"{source}: {why_nothing(report)}")
    return found, report


def is_ranking(values: Mapping[str, Any]) -> bool:
    """Whether a row that the reader takes is a ranking."""
    pairs = ("chosen", "rejected"), ("conv_A", "conv_B", "conv_A_rating", "conv_B_rating")
    return not any(all(name in values for name in names) for names in pairs)


def ratings_of(values: Mapping[str, Any]) -> tuple[float, ...]:
    """The order of a row's responses: a number for each, of which the higher one is better; of a pair 1 and 0.

    Args:
        values: the columns of a row that the reader takes.
    """
    if not is_ranking(values):
        return 1.0, 0.0
    if values.get("ratings") is not None:
        return tuple(map(float, values["ratings"]))
    return tuple(-float(rank) for rank in values["ranks"])


def better_and_worse(levels: Sequence[float]) -> list[tuple[int, int]]:
    """Each two places of which one has the higher number, that one first."""
    numbered = list(enumerate(levels))
    return [(one, other) for one, high in numbered for other, low in numbered if high > low]


def as_group(prompt: str | list[Message], responses: Sequence[str | list[Message]], source: str = "") -> TextGroup:
    """What the reader found, as a group."""
    return TextGroup(prompt if isinstance(prompt, str) else tuple(prompt), tuple(map(_response, responses)), source)


def _response(value: list[Message] | str) -> Response:
    if isinstance(value, str):
        return value
    return value[0]["content"] if len(value) == 1 else tuple(value)


@dataclasses.dataclass(frozen=True)
class NumberedPair:
    """A pair.

    Attributes:
        row: its row in the source.
        id: its `id` (a whole number as text), or the row's number.
        category: its `category`, if any.
        prompt, chosen, rejected: text or messages.
    """

    row: int
    id: str
    category: str | None
    prompt: str | list[Message]
    chosen: str | list[Message]
    rejected: str | list[Message]


def numbered_pairs(source: str) -> list[NumberedPair]:
    """All usable pairs of a source, in its order.

    Args:
        source: see `grmlight.data.source`.

    Errors: ValueError in one line for what cannot be found or read.
    """
    found = read_pairs(pair_source(source), {"name": source})
    pairs = []
    for index in range(len(found)):
        row, (prompt, responses) = found.row(index), found.group(index)
        if len(responses) != 2:
            raise ValueError(f"{source}: row {row} is a ranking of {len(responses)} responses; give pairs")
        chosen, rejected = responses
        pairs.append(NumberedPair(row, found.id(index), found.category(index), prompt, chosen, rejected))
    return pairs
