"""Figures of rewards with intervals, as metrics: sums of each prompt, which add up over batches and ranks.

Rows of one prompt are not independent, so the 95% interval comes from drawing whole prompts with replacement (the
percentile bootstrap, clusters as in Efron and Tibshirani 1993, chapter 8). Its seed is its own. A figure of a single
prompt has no interval: NaN.

Sums are float64, since variances are differences of large ones. A device without it (MPS) is left alone: the sums stay
on the CPU, where the bootstrap is drawn in any case, and rows are brought there.

Shape suffixes: P prompts, K sums, B resamples, C pairs, G groups, N responses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from grmlight.data.batch import sum_dtype
from grmlight.evaluation.pair_figures import BINS

Array = np.ndarray
RESAMPLES = 1000
_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """A figure with its 95% interval; NaN where it is not defined.

    Attributes:
        value: over all rows.
        low, high: of the interval.
        n: rows.
    """

    value: float
    low: float
    high: float
    n: int


class ClusteredMetric(Metric):
    """A figure that is a function of sums over rows. Subclasses say which sums, and which function.

    Args:
        prompts: number of prompts, the same on every rank; rows name theirs by its number.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        options: see `torchmetrics.Metric`.
    """

    full_state_update = False
    columns: int
    """Sums of a prompt; the first counts its rows."""
    sums_PK: Tensor

    def __init__(self, prompts: int, resamples: int = RESAMPLES, seed: int = 0, **options: object) -> None:
        super().__init__(**options)
        self.resamples, self.seed = resamples, seed
        self.add_state("sums_PK", torch.zeros(prompts, self.columns, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> Self:
        """Move the sums, unless to where float64 is not."""
        target = fn(torch.zeros(0, device=self.sums_PK.device)).device
        if sum_dtype(target) == torch.float64:
            super()._apply(fn, exclude_state)
        return self

    def here(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """Columns where the sums are."""
        return tuple(column.to(self.sums_PK.device) for column in columns)

    def figure(self, sums_BK: Array) -> Array:
        """The figure of each row of sums; NaN where it is not defined."""
        raise NotImplementedError

    def of_prompts(self, sums_PK: Array) -> Array:
        """What is summed over prompts: the state itself, unless a prompt's part is no sum over its rows."""
        return sums_PK

    def add(self, prompt_R: Int[Tensor, " R"], *columns_R: Tensor) -> None:
        """Add rows: the number of each one's prompt, and its part of each sum but the count."""
        ones_R = torch.ones_like(prompt_R, dtype=self.sums_PK.dtype)
        rows_RK = torch.stack([ones_R, *(column.to(ones_R) for column in columns_R)], dim=1)
        self.sums_PK.index_add_(0, prompt_R, rows_RK)

    def compute(self) -> dict[str, Tensor]:
        """`value`, `low`, `high` and `n`."""
        sums_PK = self.sums_PK.cpu().numpy()
        sums_PK = sums_PK[sums_PK[:, 0] > 0]
        table_PK = self.of_prompts(sums_PK)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = self.figure(table_PK.sum(0, keepdims=True))[0]
            drawn_B = self.figure(resampled_sums(table_PK, self.resamples, self.seed))
        low, high = percentile_interval(drawn_B) if len(table_PK) > 1 else (np.nan, np.nan)
        found = {"value": value, "low": low, "high": high, "n": sums_PK[:, 0].sum()}
        return {name: torch.tensor(float(each), dtype=torch.float64) for name, each in found.items()}

    def interval(self) -> Interval:
        """What `compute` gives, as plain numbers."""
        found = {name: float(each) for name, each in self.compute().items()}
        return Interval(found["value"], found["low"], found["high"], round(found["n"]))


def resampled_sums(table_PK: Array, resamples: int, seed: int) -> Array:
    """The sums [B, K] over prompts drawn with replacement, as many as there are; the same for the same seed."""
    prompts = len(table_PK)
    if not prompts:
        return np.zeros((resamples, table_PK.shape[1]))
    generator = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, step := max(1, _AT_ONCE // prompts)):
        size = min(step, resamples - start)
        drawn = generator.integers(prompts, size=(size, prompts)) + prompts * np.arange(size)[:, None]
        times_BP = np.bincount(drawn.ravel(), minlength=size * prompts).reshape(size, prompts)
        parts.append(times_BP.astype(np.float64) @ table_PK)
    return np.concatenate(parts)


def percentile_interval(values_B: Array) -> tuple[float, float]:
    """The middle 95% of the values that are defined; NaN without any."""
    values = values_B[~np.isnan(values_B)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


class PairAccuracy(ClusteredMetric):
    """Share of pairs whose better response has the higher reward.

    Args:
        prompts, resamples, seed, options: see `ClusteredMetric`.
        equal: what a pair with equal rewards counts; 0 is the strict rule of RewardBench and of the GRM paper.
    """

    columns = 2

    def __init__(
        self, prompts: int, resamples: int = RESAMPLES, seed: int = 0, equal: float = 0.5, **options: object
    ) -> None:
        super().__init__(prompts, resamples, seed, **options)
        self.equal = equal

    def update(self, better_C: Float[Tensor, " C"], worse_C: Float[Tensor, " C"], prompt_C: Int[Tensor, " C"]) -> None:
        """Add pairs."""
        better_C, worse_C, prompt_C = self.here(better_C, worse_C, prompt_C)
        self.add(prompt_C, right(better_C, worse_C, self.equal))

    def figure(self, sums_BK: Array) -> Array:
        """The share."""
        return sums_BK[:, 1] / sums_BK[:, 0]


class LongerWinsRuler(PairAccuracy):
    """The ruler: what length alone would reach; equal lengths count one half. Takes lengths in place of rewards."""

    def __init__(self, prompts: int, resamples: int = RESAMPLES, seed: int = 0, **options: object) -> None:
        super().__init__(prompts, resamples, seed, equal=0.5, **options)


def right(better_C: Tensor, worse_C: Tensor, equal: float) -> Tensor:
    """1 where the better response is ahead, `equal` where none is, 0 elsewhere."""
    return (better_C > worse_C).double() + equal * (better_C == worse_C).double()


class Calibration(ClusteredMetric):
    """Expected calibration error of sigmoid(reward difference), 10 bins; the `ece` of `docs/metrics.md`."""

    columns = 1 + BINS

    def update(
        self,
        better_C: Float[Tensor, " C"],
        worse_C: Float[Tensor, " C"],
        prompt_C: Int[Tensor, " C"],
        weight_C: Float[Tensor, " C"] | None = None,
    ) -> None:
        """Add pairs; with a weight, of a group with several, it counts them by that."""
        better_C, worse_C, prompt_C = self.here(better_C, worse_C, prompt_C)
        difference_C = (better_C - worse_C).double()
        weight_C = torch.ones_like(difference_C) if weight_C is None else self.here(weight_C)[0].double()
        confidence_C = difference_C.abs().sigmoid()
        gap_C = 0.5 + 0.5 * difference_C.sign() - confidence_C
        bin_C = ((2 * confidence_C - 1) * BINS).long().clamp(0, BINS - 1)
        rows_CK = torch.zeros(len(bin_C), self.columns, dtype=torch.float64, device=bin_C.device)
        rows_CK[:, 0] = weight_C
        rows_CK.scatter_(1, bin_C[:, None] + 1, (gap_C * weight_C)[:, None])
        self.sums_PK.index_add_(0, prompt_C, rows_CK)

    def figure(self, sums_BK: Array) -> Array:
        """The error."""
        return np.abs(sums_BK[:, 1:]).sum(1) / sums_BK[:, 0]


class LengthCorrelation(ClusteredMetric):
    """Pearson's correlation of reward and length over responses; NaN where either does not vary."""

    columns = 6

    def update(
        self, rewards_N: Float[Tensor, " N"], lengths_N: Float[Tensor, " N"], prompt_N: Int[Tensor, " N"]
    ) -> None:
        """Add responses."""
        rewards_N, lengths_N, prompt_N = self.here(rewards_N, lengths_N, prompt_N)
        rewards_N, lengths_N = rewards_N.double(), lengths_N.double()
        self.add(prompt_N, rewards_N, lengths_N, rewards_N**2, lengths_N**2, rewards_N * lengths_N)

    def figure(self, sums_BK: Array) -> Array:
        """The correlation."""
        count, reward, length, rewards_2, lengths_2, products = sums_BK.T
        spreads = count * rewards_2 - reward**2, count * lengths_2 - length**2
        # Below this it is what rounding leaves of equal values.
        flat = (spreads[0] <= 1e-13 * count * rewards_2) | (spreads[1] <= 1e-13 * count * lengths_2)
        shared = count * products - reward * length
        return np.where(flat, np.nan, shared / np.sqrt(np.where(flat, 1.0, spreads[0] * spreads[1])))


class BestOfK(ClusteredMetric):
    """Share of groups whose right response has the highest reward; several highest share the point.

    Source: RewardBench 2 (arXiv 2506.01937), its best-of-4 subsets.
    """

    columns = 2

    def update(
        self,
        rewards_N: Float[Tensor, " N"],
        correct_N: Bool[Tensor, " N"],
        group_N: Int[Tensor, " N"],
        prompt_G: Int[Tensor, " G"],
    ) -> None:
        """Add groups: rewards of their responses, which of these are right, and the group of each."""
        rewards_N, correct_N, group_N, prompt_G = self.here(rewards_N, correct_N, group_N, prompt_G)
        self.add(prompt_G, best_is_right(rewards_N, correct_N, group_N, len(prompt_G)))

    def figure(self, sums_BK: Array) -> Array:
        """The share."""
        return sums_BK[:, 1] / sums_BK[:, 0]


def best_is_right(rewards_N: Tensor, correct_N: Tensor, group_N: Tensor, groups: int) -> Tensor:
    """For each group which part of its highest responses is right."""
    rewards_N = rewards_N.double()
    highest_G = rewards_N.new_full((groups,), -torch.inf).scatter_reduce(0, group_N, rewards_N, "amax")
    at_top_N = (rewards_N == highest_G[group_N]).double()
    zeros_G = rewards_N.new_zeros(groups)
    return zeros_G.index_add(0, group_N, at_top_N * correct_N) / zeros_G.index_add(0, group_N, at_top_N)


class SectionAverage(ClusteredMetric):
    """Mean of sections, each the weighted mean of its subsets' accuracies: RewardBench's score.

    Subsets and sections without rows are left out, as RewardBench does.

    Args:
        sections: for each section the weights of its subsets. Subsets are numbered through, in this order.
        prompts, resamples, seed, options: see `ClusteredMetric`.
        equal: see `PairAccuracy`.

    Source: RewardBench (arXiv 2403.13787).
    """

    def __init__(
        self,
        sections: Mapping[str, Mapping[str, float]],
        prompts: int,
        resamples: int = RESAMPLES,
        seed: int = 0,
        equal: float = 0.0,
        **options: object,
    ) -> None:
        self.subsets = {name: weight for subsets in sections.values() for name, weight in subsets.items()}
        self.columns = 1 + 2 * len(self.subsets)
        super().__init__(prompts, resamples, seed, **options)
        self.sections, self.equal = sections, equal

    def update(
        self,
        better_C: Float[Tensor, " C"],
        worse_C: Float[Tensor, " C"],
        prompt_C: Int[Tensor, " C"],
        subset_C: Int[Tensor, " C"],
    ) -> None:
        """Add pairs, each with the number of its subset."""
        better_C, worse_C, prompt_C, subset_C = self.here(better_C, worse_C, prompt_C, subset_C)
        at_CS = torch.nn.functional.one_hot(subset_C, len(self.subsets)).double()
        right_C = right(better_C, worse_C, self.equal)
        self.add(prompt_C, *at_CS.T, *(at_CS * right_C[:, None]).T)

    def figure(self, sums_BK: Array) -> Array:
        """The mean of the sections."""
        count_BS, right_BS = np.split(sums_BK[:, 1:], 2, axis=1)
        weight_BS = np.array(list(self.subsets.values())) * (count_BS > 0)
        points_BS = weight_BS * right_BS / np.maximum(count_BS, 1)
        section_S = np.array([name for name, subsets in self.sections.items() for _ in subsets])
        scores = [
            points_BS[:, section_S == name].sum(1) / weight_BS[:, section_S == name].sum(1) for name in self.sections
        ]
        return mean_of_defined(np.stack(scores, axis=1))


def mean_of_defined(values_BS: Array) -> Array:
    """Mean over the second axis, NaN left out; NaN where all are."""
    defined_BS = ~np.isnan(values_BS)
    return np.where(defined_BS, values_BS, 0).sum(1) / defined_BS.sum(1)
