"""The usable pairs of a source as text, with what stores keep of their rows: for tools that read rather than train."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from grmlight._data_rs import read_pairs
from grmlight.data.render import Message
from grmlight.data.source import as_json_lines


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


def numbered_pairs(source: str, scratch: Path) -> list[NumberedPair]:
    """All usable pairs of a source, in its order.

    Args:
        source: see `grmlight.data.source`.
        scratch: a folder for a converted copy, which is removed again.

    Errors: ValueError in one line for what cannot be found or read.
    """
    with as_json_lines(source, scratch) as path:
        found = read_pairs(path, {"name": source})
    pairs = []
    for index in range(len(found)):
        row, (prompt, responses) = found.row(index), found.group(index)
        if len(responses) != 2:
            raise ValueError(f"{source}: row {row} is a ranking of {len(responses)} responses; give pairs")
        chosen, rejected = responses
        pairs.append(NumberedPair(row, found.id(index), found.category(index), prompt, chosen, rejected))
    return pairs
