"""From rewards to a benchmark's rows: the metrics of one category, and of all.

Shape suffixes: N responses, G groups, C pairs (each two responses of a group of which one is better).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grmlight.evaluation.clustered import (
    RESAMPLES,
    BestOfK,
    Calibration,
    ClusteredMetric,
    Interval,
    LengthCorrelation,
    LongerWinsRuler,
    PairAccuracy,
)

ALL, AVERAGE = "all", "average"
"""The category of a benchmark's total: over all rows, or the mean of its parts."""


def apart_from_totals(category: str) -> str:
    """A category's name, changed where a total has it."""
    return f"{category} (category)" if category.strip().lower() in (ALL, AVERAGE) else category


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """How intervals are made, and where sums are reduced.

    Attributes:
        resamples: of the bootstrap.
        seed: its seed.
        ranks: ranks that share the rows.
        device: where tensors of a collective must be.
    """

    resamples: int = RESAMPLES
    seed: int = 0
    ranks: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    def options(self) -> dict[str, Any]:
        """Arguments of a metric; where one process scores all rows, nothing is reduced."""
        return {"resamples": self.resamples, "seed": self.seed, "sync_on_compute": self.ranks > 1}

    def interval(self, metric: ClusteredMetric, *columns: Tensor) -> Interval:
        """A metric over rows, those of all ranks together."""
        metric = metric.to(self.device)
        metric.update(*columns)
        return metric.interval()


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the result."""

    benchmark: str
    category: str
    n: int
    accuracy: Interval
    ruler: Interval
    ece: Interval
    length_correlation: Interval


@dataclasses.dataclass(frozen=True)
class Scored:
    """Groups with their rewards, those of this rank; categories and prompts are numbered alike on every rank.

    Attributes:
        categories: names of all categories of the benchmark.
        prompts: prompts of the benchmark.
        rewards_N, lengths_N: of the responses.
        correct_N: whether they are right; of rankings it says nothing.
        level_N: numbers that say which of two responses of a group is better: the one with the higher number.
        group_N: their group, ascending.
        category_G: the groups' category.
        prompt_G: their prompt.
        tied_G: see `Example.tied`.
    """

    categories: tuple[str, ...]
    prompts: int
    rewards_N: Float[Tensor, " N"]
    lengths_N: Float[Tensor, " N"]
    correct_N: Bool[Tensor, " N"]
    level_N: Float[Tensor, " N"]
    group_N: Int[Tensor, " N"]
    category_G: Int[Tensor, " G"]
    prompt_G: Int[Tensor, " G"]
    tied_G: Bool[Tensor, " G"]

    def of(self, categories: Sequence[str]) -> Scored:
        """The groups of some categories."""
        wanted = torch.tensor([name in categories for name in self.categories], dtype=torch.bool)
        kept_G = wanted[self.category_G]
        kept_N = kept_G[self.group_N]
        number_G = kept_G.long().cumsum(0) - 1
        responses = {name: getattr(self, name)[kept_N] for name in ("rewards_N", "lengths_N", "correct_N", "level_N")}
        groups = {name: getattr(self, name)[kept_G] for name in ("category_G", "prompt_G", "tied_G")}
        return dataclasses.replace(self, group_N=number_G[self.group_N[kept_N]], **responses, **groups)

    def numbered(self, names: Sequence[str]) -> Int[Tensor, " G"]:
        """The place of each group's category among names, which hold it."""
        places = [names.index(name) if name in names else -1 for name in self.categories]
        return torch.tensor(places, dtype=torch.int64)[self.category_G]

    def pairs(self) -> Pairs:
        """Each two responses of a group of which one is better; a group's pairs weigh 1 together."""
        found = [torch.zeros(2, 0, dtype=torch.int64)]
        largest = int(self.group_N.bincount().max()) if len(self.group_N) else 0
        for apart in range(1, largest):
            first, second = slice(None, -apart), slice(apart, None)
            same = self.group_N[first] == self.group_N[second]
            for sign in (1, -1):
                ahead = (sign * (self.level_N[first] - self.level_N[second]) > 0) & same
                pair = torch.stack([(place := ahead.nonzero().squeeze(1)), place + apart])
                found.append(pair if sign > 0 else pair.flip(0))
        better_C, worse_C = torch.cat(found, dim=1)
        group_C = self.group_N[better_C]
        pairs_G = group_C.bincount(minlength=len(self.prompt_G))
        return Pairs(better_C, worse_C, group_C, self.prompt_G[group_C], 1 / pairs_G[group_C].double())


class Pairs(NamedTuple):
    """Pairs of responses: their indices, groups, prompts and weights."""

    better_C: Int[Tensor, " C"]
    worse_C: Int[Tensor, " C"]
    group_C: Int[Tensor, " C"]
    prompt_C: Int[Tensor, " C"]
    weight_C: Float[Tensor, " C"]


def row(
    benchmark: str, category: str, scored: Scored, bootstrap: Bootstrap, accuracy: Interval, ruler: Interval
) -> Row:
    """A row whose accuracy and ruler are given; calibration and correlation are those of all its groups."""
    pairs, options = scored.pairs(), bootstrap.options()
    sides = scored.rewards_N[pairs.better_C], scored.rewards_N[pairs.worse_C]
    ece = bootstrap.interval(Calibration(scored.prompts, **options), *sides, pairs.prompt_C, pairs.weight_C)
    correlation = bootstrap.interval(
        LengthCorrelation(scored.prompts, **options),
        scored.rewards_N,
        scored.lengths_N,
        scored.prompt_G[scored.group_N],
    )
    return Row(benchmark, category, accuracy.n, accuracy, ruler, ece, correlation)


def pair_row(benchmark: str, category: str, scored: Scored, bootstrap: Bootstrap, equal: float) -> Row:
    """A row of pairs and rankings, which count by their comparisons."""
    pairs, options = scored.pairs(), bootstrap.options()

    def share(metric: PairAccuracy, values_N: Tensor) -> Interval:
        return bootstrap.interval(metric, values_N[pairs.better_C], values_N[pairs.worse_C], pairs.prompt_C)

    accuracy = share(PairAccuracy(scored.prompts, equal=equal, **options), scored.rewards_N)
    ruler = share(LongerWinsRuler(scored.prompts, **options), scored.lengths_N)
    return row(benchmark, category, scored, bootstrap, accuracy, ruler)


def best_row(benchmark: str, category: str, scored: Scored, bootstrap: Bootstrap) -> Row:
    """A row of groups of which the best response shall be right."""

    def share(values_N: Tensor) -> Interval:
        metric = BestOfK(scored.prompts, **bootstrap.options())
        return bootstrap.interval(metric, values_N, scored.correct_N, scored.group_N, scored.prompt_G)

    return row(benchmark, category, scored, bootstrap, share(scored.rewards_N), share(scored.lengths_N))


def pair_rows(benchmark: str, scored: Scored, bootstrap: Bootstrap, equal: float) -> list[Row]:
    """A row a category, where there are several, and one of all pairs."""
    names = scored.categories if len(scored.categories) > 1 else ()
    parts = [pair_row(benchmark, name, scored.of([name]), bootstrap, equal) for name in names]
    return [*parts, pair_row(benchmark, ALL, scored, bootstrap, equal)]
