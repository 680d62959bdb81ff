"""Scorers that need no model: rewards by a rule, and what they come to on a benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from grmlight.data.texts import TextGroup, final_answer
from grmlight.evaluation.benchmarks import Reading, read_benchmark
from grmlight.evaluation.evaluate import evaluate
from grmlight.evaluation.tally import Row


class RuleScorer:
    """Rewards each final answer by a rule."""

    name = "rule"

    def __init__(self, rule: Callable[[str], float]) -> None:
        self.rule = rule

    def score(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        return [[self.rule(final_answer(response)) for response in group.responses] for group in groups]


NUMBER = RuleScorer(lambda answer: float(answer.split()[-1]))
"""An answer's reward is its last word."""


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def all_rows(reading: Reading) -> list[str]:
    """Every row's label, used or refused."""
    refused = [row for rows in reading.refused.values() for row in rows]
    return sorted([example.row for example in reading.examples] + refused, key=int)


def results(name: str, path: Path, scorer: RuleScorer = NUMBER) -> tuple[dict[str, Row], Reading]:
    """A benchmark's rows by category, and what was read."""
    found = evaluate(scorer, *read_benchmark(f"{name}={path}"))
    return {row.category: row for row in found.rows}, found.reading
