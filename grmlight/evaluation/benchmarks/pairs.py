"""Pairs and rankings from files, in any form that training takes them; Unified-Feedback is one of these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from grmlight._data_rs import read_pairs
from grmlight.data.pairs import as_group, is_ranking, ratings_of
from grmlight.data.texts import TextGroup
from grmlight.evaluation.benchmarks.benchmark import Benchmark
from grmlight.evaluation.benchmarks.example import Example, Reading, Refused
from grmlight.evaluation.tally import apart_from_totals

_FORMATS = (
    ("chosen", "rejected"),
    ("conv_A", "conv_B", "conv_A_rating", "conv_B_rating"),
    ("prompt", "responses", "ratings"),
    ("prompt", "responses", "ranks"),
)
"""Columns of a row, as the reader takes them."""


class PairFile(Benchmark):
    """Pairs and rankings of a file, by their `category`, else by their `source`.

    Rows are read and linted as for training; a ranking counts by its comparisons, a pair with equal rewards one half. A
    category that has a total's name ("all", "average") gets " (category)" behind it, and its rows are noted.

    Args:
        name: what the result is called.
    """

    hub = ()
    columns = ()
    equal = 0.5
    files = "pairs or rankings, as training takes them"

    def __init__(self, name: str = "pairs") -> None:
        self.name = name

    def missing(self, values: Mapping[str, Any]) -> list[str]:
        """What no pair format of the reader allows."""
        absent = [[name for name in names if name not in values] for names in _FORMATS]
        return [] if [] in absent else min(absent, key=len)

    def example(self, row: Mapping[str, Any], part: str, reading: Reading, label: str) -> Example:
        """A pair or a ranking."""
        group, ratings = text_group(row)
        if len(set(ratings)) < len(ratings):
            reading.note("tie", label)
        # Training takes texts alone for either.
        names = [row.get(name) for name in ("category", "source")]
        category = next((name for name in names if isinstance(name, str) and name), "none")
        return Example(label, self.category(category, reading, label), group, ratings=ratings)

    def category(self, given: str, reading: Reading, label: str) -> str:
        """A row's category, which is no total's name."""
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
    files = Benchmark.files

    def __init__(self) -> None:
        super().__init__("unified_feedback")

    def missing(self, values: Mapping[str, Any]) -> list[str]:
        """Columns that a row lacks."""
        return [name for name in self.columns if name not in values]

    def example(self, row: Mapping[str, Any], part: str, reading: Reading, label: str) -> Example:
        """A pair."""
        return Example(label, self.category(str(row["source"]), reading, label), text_group(row)[0])


def text_group(row: Mapping[str, Any]) -> tuple[TextGroup, tuple[float, ...]]:
    """A row as training's reader sees it: a pair with the better response first, or a ranking and its order.

    A soft label below one half says that the other side is better, one half is a tie. The order: see `Example.ratings`.

    Errors: Refused, with the reader's reason.
    """
    found = read_pairs(json.dumps(row, ensure_ascii=True, default=str).encode(), {})
    if not len(found):
        raise Refused(next(iter(found.refused), "unknown_columns"))
    prompt, responses = found.group(0)
    label = 1.0 if row.get("soft_label") is None else float(row["soft_label"])
    if label == 0.5:
        raise Refused("tie")
    # The reader instructs summarization prompts in rated conversations alone.
    source = str(row.get("source") or "") if "conv_A" in row else ""
    if not is_ranking(row):
        return as_group(prompt, responses[::-1] if label < 0.5 else responses, source), ()
    sign = -1.0 if label < 0.5 else 1.0
    return as_group(prompt, responses, source), tuple(sign * rating for rating in ratings_of(row))
