"""Scorers that need no model: rewards by a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grmlight.data.texts import TextGroup, final_answer


class RuleScorer:
    """Rewards each final answer by a rule."""

    name = "rule"

    def __init__(self, rule: Callable[[str], float]) -> None:
        self.rule = rule

    def score(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        return [[self.rule(final_answer(response)) for response in group.responses] for group in groups]
