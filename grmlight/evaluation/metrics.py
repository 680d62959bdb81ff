"""Metrics over whole evaluation sets: sums that are reduced once, never means of batch means.

Every metric is updated with the outputs of a forward and its batch; groups that only fill an empty share are left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from grmlight.data.batch import GroupBatch
from grmlight.models.outputs import Outputs


class _Mean(Metric):
    """A mean of a value over comparisons or responses."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, values: Tensor, counts: Tensor) -> None:
        self.total += (values.double() * counts).sum()
        self.count += counts.sum()

    def compute(self) -> Tensor:
        """The mean, NaN over nothing."""
        return (self.total / self.count).float()


class _Ordering(_Mean):
    """Share of comparisons that a value orders as labeled: equal values count one half, labeled ties do not count."""

    higher_is_better = True

    def _compare(self, values_N: Tensor, batch: GroupBatch) -> None:
        side_C = (batch.label_C - 0.5).sign()
        right_C = ((values_N[batch.better_C] - values_N[batch.worse_C]).sign() * side_C + 1) / 2
        self._add(right_C, batch.count_G[batch.group_C] * side_C.abs())


class PairAccuracy(_Ordering):
    """Share of comparisons that the rewards order as labeled."""

    def update(self, outputs: Outputs, batch: GroupBatch) -> None:
        """Add the comparisons of a batch."""
        self._compare(outputs.rewards_N, batch)


class RewardMargin(_Mean):
    """Mean of better minus worse reward."""

    def update(self, outputs: Outputs, batch: GroupBatch) -> None:
        """Add the comparisons of a batch."""
        self._add(outputs.rewards_N[batch.better_C] - outputs.rewards_N[batch.worse_C], batch.count_G[batch.group_C])


class RewardMean(_Mean):
    """Mean reward of all responses."""

    def update(self, outputs: Outputs, batch: GroupBatch) -> None:
        """Add the responses of a batch."""
        self._add(outputs.rewards_N, batch.count_G[batch.group_N])


class LongerWins(_Ordering):
    """The ruler: share of comparisons that the number of scored tokens orders as labeled."""

    def update(self, outputs: Outputs, batch: GroupBatch) -> None:
        """Add the comparisons of a batch."""
        self._compare(batch.scored_tokens_N(), batch)


class PairCount(_Mean):
    """Comparisons that `PairAccuracy` counts."""

    def update(self, outputs: Outputs, batch: GroupBatch) -> None:
        """Add the comparisons of a batch."""
        count_C = batch.count_G[batch.group_C] * (batch.label_C != 0.5)
        self._add(torch.zeros_like(count_C), count_C)

    def compute(self) -> Tensor:
        """Their number."""
        return self.count.float()


def pair_metrics(prefix: str) -> MetricCollection:
    """The metrics of one evaluation set, named `prefix` + metric."""
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": PairAccuracy(),
        "margin": RewardMargin(),
        "reward": RewardMean(),
        "longer_wins": LongerWins(),
        "pairs": PairCount(),
    }
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def wilson_interval(accuracy: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95% interval of a share of `count` trials (Wilson 1927)."""
    if count == 0:
        return math.nan, math.nan
    center = (accuracy + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(accuracy * (1 - accuracy) / count + z * z / (4 * count * count))
    return center - half, center + half
