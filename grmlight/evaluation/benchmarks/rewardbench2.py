"""RewardBench 2: best of four, and ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from grmlight.data.texts import TextGroup
from grmlight.evaluation.benchmarks.benchmark import Benchmark
from grmlight.evaluation.benchmarks.example import Example, Reading, Refused, checked, text
from grmlight.evaluation.clustered import Interval
from grmlight.evaluation.rows import Row as KeptRow
from grmlight.evaluation.tally import AVERAGE, Bootstrap, Row, Scored, best_row, row
from grmlight.evaluation.ties import RewardBench2Average, TiesScore

TIES = "Ties"


class RewardBench2(Benchmark):
    """RewardBench 2 (Malik et al., arXiv 2506.01937).

    The mean of its subsets: of five the share of prompts whose right answer has the highest reward (several highest
    share the point), of Ties the score of `grmlight.evaluation.ties`.
    """

    name = "rewardbench2"
    hub = (("test", "allenai/reward-bench-2:test"),)
    columns = ("id", "prompt", "chosen", "rejected", "subset")

    def example(self, row: Mapping[str, Any], part: str, reading: Reading, label: str) -> Example:
        """A prompt with its right answers, then its wrong ones."""
        prompt, right, wrong = text(row, "prompt"), _answers(row["chosen"]), _answers(row["rejected"])
        group = TextGroup(prompt, (*right, *wrong))
        if str(row["subset"]).lower() != TIES.lower():
            if len(right) != 1:
                raise Refused("several_right_answers")
            return Example(label, str(row["subset"]), group)
        kind, _, number = str(row["id"]).partition(":")
        if kind not in ("ref", "tied") or not number:
            raise Refused("unknown_ties_id")
        if (kind == "tied") != (len(right) > 1):
            raise Refused("wrong_number_of_right_answers")
        key = f"{TIES}:{number}"
        if any(other.prompt == key and other.tied == (kind == "tied") for other in reading.examples):
            raise Refused("duplicate")
        return Example(label, TIES, group, len(right), key, tied=kind == "tied")

    def check(self, reading: Reading) -> None:
        """Note prompts of Ties that come one way only: they enter the accuracies alone."""
        ties = [example for example in reading.examples if example.category == TIES]
        for example in ties:
            if sum(other.prompt == example.prompt for other in ties) == 1:
                reading.note("ties_without_its_other_half", example.row)

    def kept(self, example: Example, rewards: Sequence[float]) -> KeptRow | None:
        """Nothing: the score of Ties is no sum over prompts, and the average holds it."""
        return None

    def rows(self, scored: Scored, bootstrap: Bootstrap) -> list[Row]:
        """Subsets, and their mean."""
        best = [name for name in scored.categories if name != TIES]
        lines = [best_row(self.name, name, scored.of([name]), bootstrap) for name in best]
        if TIES in scored.categories:
            lines.append(self._ties(scored.of([TIES]), bootstrap))
        return [*lines, self._average(best, scored, bootstrap)]

    def _ties(self, ties: Scored, bootstrap: Bootstrap) -> Row:
        def score(values_N: torch.Tensor) -> Interval:
            metric = TiesScore(ties.prompts, **bootstrap.options())
            return bootstrap.interval(metric, values_N, ties.correct_N, ties.group_N, ties.tied_G, ties.prompt_G)

        return row(self.name, TIES, ties, bootstrap, score(ties.rewards_N), score(ties.lengths_N))

    def _average(self, best: list[str], scored: Scored, bootstrap: Bootstrap) -> Row:
        subset_G = scored.numbered([*best, TIES])

        def score(values_N: torch.Tensor) -> Interval:
            metric = RewardBench2Average(best, scored.prompts, **bootstrap.options())
            columns = values_N, scored.correct_N, scored.group_N, scored.tied_G, subset_G, scored.prompt_G
            return bootstrap.interval(metric, *columns)

        return row(self.name, AVERAGE, scored, bootstrap, score(scored.rewards_N), score(scored.lengths_N))


def _answers(value: Any) -> tuple[str, ...]:
    answers = [value] if isinstance(value, str) else value
    if not isinstance(answers, list) or not answers:
        raise Refused("no_answers")
    return tuple(checked(answer) for answer in answers)
