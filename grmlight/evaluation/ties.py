"""RewardBench 2's score: best-of-4 subsets, and "Ties" with a score of its own.

A prompt of the Ties subset comes twice: as "tied" with several right answers, as "ref" with one. With a(x) whether
every right answer is ahead of every wrong one, gap(x) = worst right - best wrong, spread = best right - worst right
of the tied one:

    score = 0.3 mean a(tied) + 0.3 mean a(ref) + 0.2 mean [gap(tied) > spread]
            + 0.2 mean [min(gap(ref), gap(tied)) > spread] + 0.01 mean tanh(min(gap(ref), gap(tied)) / spread - 1)

The last three over prompts that come both ways; 0 / 0 counts 0 in the last. Source: RewardBench 2 (arXiv 2506.01937)
says which terms; their weights are those of its released program (allenai/reward-bench, commit 05a9005).

Shape suffixes: P prompts, K sums, B resamples, S subsets, G groups, N responses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grmlight.evaluation.clustered import RESAMPLES, Array, ClusteredMetric, best_is_right, mean_of_defined

TIES_WEIGHTS = np.array([0.3, 0.3, 0.2, 0.2, 0.01])
"""Of tied accuracy, ref accuracy, gap above spread, the same with the smaller gap, and the normalized gap."""


class TiesScore(ClusteredMetric):
    """The score of the Ties subset; each prompt at most once as "tied" and once as "ref"."""

    # Of a prompt: rows, then for ref and for tied: rows, accurate, gap; and the spread.
    columns = 8

    def update(
        self,
        rewards_N: Float[Tensor, " N"],
        correct_N: Bool[Tensor, " N"],
        group_N: Int[Tensor, " N"],
        tied_G: Bool[Tensor, " G"],
        prompt_G: Int[Tensor, " G"],
    ) -> None:
        """Add groups: rewards of their responses, which of these are right, the group of each, and each one's kind."""
        columns = self.here(rewards_N, correct_N, group_N, tied_G)
        self.add(*self.here(prompt_G), *ties_columns(*columns))

    def of_prompts(self, sums_PK: Array) -> Array:
        """Rows, and for each of the five terms how many prompts have it and its sum."""
        return np.concatenate([sums_PK[:, :1], ties_terms(sums_PK[:, 1:])], axis=1)

    def figure(self, sums_BK: Array) -> Array:
        """The score."""
        return ties_score(sums_BK[:, 1:])


def ties_columns(rewards_N: Tensor, correct_N: Tensor, group_N: Tensor, tied_G: Tensor) -> list[Tensor]:
    """What is kept of each group: [rows, accurate, gap] for ref and for tied, and the spread."""
    rewards_N, tied_G = rewards_N.double(), tied_G.bool()

    def extreme(of_N: Tensor, which: str, start: float) -> Tensor:
        start_G = rewards_N.new_full(tied_G.shape, start)
        return start_G.scatter_reduce(0, group_N[of_N], rewards_N[of_N], which)

    worst, best = extreme(correct_N, "amin", torch.inf), extreme(correct_N, "amax", -torch.inf)
    gap_G = worst - extreme(~correct_N, "amax", -torch.inf)
    columns = [torch.ones_like(gap_G), (gap_G > 0).double(), gap_G]
    zero_G = torch.zeros_like(gap_G)
    ref = [torch.where(tied_G, zero_G, column) for column in columns]
    tied = [torch.where(tied_G, column, zero_G) for column in [*columns, best - worst]]
    return [*ref, *tied]


def ties_terms(kept_PK: Array) -> Array:
    """For each prompt and term whether it has it, and its value: five and five columns."""
    ref, ref_right, ref_gap, tied, tied_right, tied_gap, spread = kept_PK.T
    both = (ref > 0) & (tied > 0)
    smaller = np.minimum(ref_gap, tied_gap)
    with np.errstate(invalid="ignore", divide="ignore"):
        normalized = np.nan_to_num(np.tanh(smaller / spread - 1), nan=0.0)
    values = [tied_right, ref_right, both * (tied_gap > spread), both * (smaller > spread), both * normalized]
    return np.stack([tied, ref, both, both, both, *values], axis=1).astype(np.float64)


def ties_score(sums_BK: Array) -> Array:
    """The weighted sum of the five means; NaN where no prompt has one of them."""
    count_BT, sum_BT = np.split(sums_BK, 2, axis=1)
    score_B = (sum_BT / np.maximum(count_BT, 1)) @ TIES_WEIGHTS
    return np.where(count_BT.all(axis=1), score_B, np.nan)


class RewardBench2Average(ClusteredMetric):
    """RewardBench 2's score: the mean of its subsets; those without rows are left out.

    Args:
        subsets: the best-of-4 subsets, numbered in this order; Ties comes after them.
        prompts, resamples, seed, options: see `ClusteredMetric`.
    """

    def __init__(
        self, subsets: Sequence[str], prompts: int, resamples: int = RESAMPLES, seed: int = 0, **options: object
    ) -> None:
        self.subsets = list(subsets)
        self.columns = 1 + 2 * len(self.subsets) + TiesScore.columns - 1
        super().__init__(prompts, resamples, seed, **options)

    def update(
        self,
        rewards_N: Float[Tensor, " N"],
        correct_N: Bool[Tensor, " N"],
        group_N: Int[Tensor, " N"],
        tied_G: Bool[Tensor, " G"],
        subset_G: Int[Tensor, " G"],
        prompt_G: Int[Tensor, " G"],
    ) -> None:
        """Add groups; a subset's number beyond the best-of-4 ones is Ties."""
        rewards_N, correct_N, group_N = self.here(rewards_N, correct_N, group_N)
        tied_G, subset_G, prompt_G = self.here(tied_G, subset_G, prompt_G)
        right_G = best_is_right(rewards_N, correct_N, group_N, len(prompt_G))
        at_GS = torch.nn.functional.one_hot(subset_G, len(self.subsets) + 1).double()
        columns = ties_columns(rewards_N, correct_N, group_N, tied_G)
        ties = [torch.where(at_GS[:, -1] > 0, column, 0.0) for column in columns]
        self.add(prompt_G, *at_GS.T[:-1], *(at_GS * right_G[:, None]).T[:-1], *ties)

    def of_prompts(self, sums_PK: Array) -> Array:
        """The best-of-4 sums as they are, and the terms of Ties."""
        kept = 1 - TiesScore.columns
        return np.concatenate([sums_PK[:, :kept], ties_terms(sums_PK[:, kept:])], axis=1)

    def figure(self, sums_BK: Array) -> Array:
        """The mean of the subsets."""
        terms = 2 * len(TIES_WEIGHTS)
        count_BS, right_BS = np.split(sums_BK[:, 1:-terms], 2, axis=1)
        return mean_of_defined(np.column_stack([right_BS / count_BS, ties_score(sums_BK[:, -terms:])]))
