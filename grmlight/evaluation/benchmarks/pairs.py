"""Pairs from files, in any form that training takes them; Unified-Feedback is one of these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from grmlight._data_rs import read_pairs
from grmlight.data.texts import Response, TextGroup
from grmlight.evaluation.benchmarks.benchmark import Benchmark
from grmlight.evaluation.benchmarks.example import Example, Reading, Refused
from grmlight.evaluation.tally import apart_from_totals


class PairFile(Benchmark):
    """Pairs of a file, by their `category`, else by their `source`.

    Rows are read and linted as for training; a pair with equal rewards counts one half. A category that has a total's
    name ("all", "average") gets " (category)" behind it, and its rows are noted.

    Args:
        name: what the result is called.
    """

    hub = ()
    columns = ()
    equal = 0.5

    def __init__(self, name: str = "pairs") -> None:
        self.name = name

    def missing(self, values: Mapping[str, Any]) -> list[str]:
        """What no pair format of the reader allows."""
        formats = ("chosen", "rejected"), ("conv_A", "conv_B", "conv_A_rating", "conv_B_rating")
        absent = [[name for name in names if name not in values] for names in formats]
        return [] if [] in absent else absent[0]

    def example(self, row: Mapping[str, Any], part: str, reading: Reading, label: str) -> Example:
        """A pair."""
        group = text_pair(row)
        return Example(label, self.category(row.get("category") or row.get("source"), reading, label), group)

    def category(self, value: Any, reading: Reading, label: str) -> str:
        """A row's category, which is no total's name."""
        given = str(value or "none")
        if (found := apart_from_totals(given)) != given:
            reading.note("category_named_as_a_total", label)
        return found


class UnifiedFeedback(PairFile):
    """Unified-Feedback's validation split (llm-blender), by source; rows with equal ratings are refused as ties.

    The GRM paper's in-distribution test. A pair with equal rewards is wrong.
    """

    hub = (("val", "llm-blender/Unified-Feedback@all:val"),)
    columns = ("conv_A", "conv_B", "conv_A_rating", "conv_B_rating", "source")
    equal = 0.0

    def __init__(self) -> None:
        super().__init__("unified_feedback")

    def missing(self, values: Mapping[str, Any]) -> list[str]:
        """Columns that a row lacks."""
        return [name for name in self.columns if name not in values]

    def example(self, row: Mapping[str, Any], part: str, reading: Reading, label: str) -> Example:
        """A pair."""
        group = text_pair(row)
        return Example(label, self.category(row["source"], reading, label), group)


def text_pair(row: Mapping[str, Any]) -> TextGroup:
    """A row as training's reader sees it.

    A soft label below one half says that the other side is better, one half is a tie.

    Errors: Refused, with the reader's reason.
    """
    found = read_pairs(json.dumps(row, ensure_ascii=True, default=str).encode(), {})
    if not len(found):
        raise Refused(next(iter(found.refused), "unknown_columns"))
    prompt, responses = found.group(0)
    label = 1.0 if row.get("soft_label") is None else float(row["soft_label"])
    if label == 0.5:
        raise Refused("tie")
    if label < 0.5:
        responses = responses[::-1]
    # The reader instructs summarization prompts in rated conversations alone.
    source = str(row.get("source") or "") if "conv_A" in row else ""
    return TextGroup(prompt if isinstance(prompt, str) else tuple(prompt), tuple(map(_response, responses)), source)


def _response(value: list[dict[str, str]] | str) -> Response:
    if isinstance(value, str):
        return value
    return value[0]["content"] if len(value) == 1 else tuple(value)
