"""RewardBench 1: pairs in 23 subsets, four sections, and their mean."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from grmlight.evaluation.benchmarks.benchmark import Benchmark, counted
from grmlight.evaluation.benchmarks.example import Example, Reading, Refused, pair, text
from grmlight.evaluation.clustered import SectionAverage
from grmlight.evaluation.rows import Row as KeptRow
from grmlight.evaluation.tally import AVERAGE, Bootstrap, Row, Scored, pair_row, row

COUNTS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 447,
        **dict.fromkeys(("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"), 164),
    },
}
"""Pairs of each subset, by section."""

WEIGHTS: dict[str, dict[str, float]] = {
    section: {name: 984.0 if name == "math-prm" else float(count) for name, count in subsets.items()}
    for section, subsets in COUNTS.items()
}
"""Weight of each subset in its section: its count, and math as much as all code together."""

_SUBSETS = [name for subsets in COUNTS.values() for name in subsets]


class RewardBench(Benchmark):
    """RewardBench (Lambert et al., arXiv 2403.13787): its filtered split, and its score.

    A section is the mean of its subsets' accuracies by `WEIGHTS`, the score the plain mean of the sections. A pair with
    equal rewards is wrong.
    """

    name = "rewardbench"
    hub = (("filtered", "allenai/reward-bench:filtered"),)
    columns = ("prompt", "chosen", "rejected", "subset")

    def example(self, row: Mapping[str, Any], part: str, reading: Reading, label: str) -> Example:
        """A pair."""
        if row["subset"] not in _SUBSETS:
            raise Refused("unknown_subset")
        group = pair(text(row, "prompt"), text(row, "chosen"), text(row, "rejected"))
        return Example(label, row["subset"], group)

    def check(self, reading: Reading) -> None:
        """Note the subsets that are not there in their published number."""
        found = dict(counted(reading))
        for subsets in COUNTS.values():
            for name, count in subsets.items():
                if found.get(name, 0) != count:
                    reading.note("subset_not_whole", f"{name}: {found.get(name, 0)} of {count}")

    def weighed(self, rows: Sequence[KeptRow]) -> list[KeptRow]:
        """Pairs under their section; those of a subset weigh together what the subset does, however many there are."""
        found = Counter(row.category for row in rows)
        sections = {name: section for section, subsets in COUNTS.items() for name in subsets}
        weights = {name: WEIGHTS[sections[name]][name] / count for name, count in found.items()}
        return [
            dataclasses.replace(
                row,
                right=weights[row.category] * row.right,
                pairs=weights[row.category],
                category=sections[row.category],
                stratum=row.category,
            )
            for row in rows
        ]

    def rows(self, scored: Scored, bootstrap: Bootstrap) -> list[Row]:
        """Subsets, sections, and the average."""
        found = [name for name in _SUBSETS if name in scored.categories]
        lines = [pair_row(self.name, name, scored.of([name]), bootstrap, self.equal) for name in found]
        sections = {name: subsets for name, subsets in WEIGHTS.items() if not found or set(found) & set(subsets)}
        for name, subsets in sections.items():
            lines.append(self._section(name, {name: subsets}, scored.of(list(subsets)), bootstrap))
        return [*lines, self._section(AVERAGE, WEIGHTS, scored, bootstrap)]

    def _section(
        self, category: str, sections: dict[str, dict[str, float]], scored: Scored, bootstrap: Bootstrap
    ) -> Row:
        pairs = scored.pairs()
        names = [name for subsets in sections.values() for name in subsets]
        subset_C = scored.numbered(names)[pairs.group_C]

        def score(values_N: Any, equal: float) -> Any:
            metric = SectionAverage(sections, scored.prompts, equal=equal, **bootstrap.options())
            sides = values_N[pairs.better_C], values_N[pairs.worse_C]
            return bootstrap.interval(metric, *sides, pairs.prompt_C, subset_C)

        accuracy, ruler = score(scored.rewards_N, self.equal), score(scored.lengths_N, 0.5)
        return row(self.name, category, scored, bootstrap, accuracy, ruler)
