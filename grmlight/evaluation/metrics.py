"""Metrics over whole evaluation sets: sums that are reduced once, never means of batch means.

Every metric is updated with the outputs of a forward and its batch; groups that only fill an empty share are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from grmlight.data.batch import GroupBatch, sum_dtype
from grmlight.evaluation.disagreement import Disagreement
from grmlight.evaluation.pair_figures import SUMS, pair_figures, pair_sums, pair_values
from grmlight.models.outputs import Outputs


class PairFigures(Metric):
    """What `pair_figures` reads: accuracy, margin, rewards by side, calibration, and their correlation with length."""

    full_state_update = False
    sums: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(SUMS, dtype=dtype), dist_reduce_fx="sum")

    def update(self, outputs: Outputs, batch: GroupBatch) -> None:
        """Add the pairs of a batch."""
        self.sums += pair_sums([pair_values(outputs.rewards_N, batch)])

    def compute(self) -> dict[str, Tensor]:
        """The figures by name."""
        return {name: torch.tensor(value) for name, value in pair_figures(self.sums.tolist()).items()}


class LongerWins(Metric):
    """The ruler: share of pairs that the number of scored tokens orders as labeled, and how many pairs count.

    Equal lengths count one half, labeled ties do not count. `groups` is how many groups have a pair that counts: the
    comparisons of a group are no independent trials.
    """

    full_state_update = False
    right: Tensor
    pairs: Tensor
    groups: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        for name in ("right", "pairs", "groups"):
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def update(self, outputs: Outputs, batch: GroupBatch) -> None:
        """Add the pairs of a batch."""
        tokens_N = batch.scored_tokens_N()
        side_C = (batch.label_C - 0.5).sign()
        right_C = ((tokens_N[batch.better_C] - tokens_N[batch.worse_C]).sign() * side_C + 1) / 2
        count_C = batch.count_G[batch.group_C] * side_C.abs()
        self.right += (right_C * count_C).sum()
        self.pairs += count_C.sum()
        self.groups += count_C.new_zeros(batch.groups).index_add(0, batch.group_C, count_C).sign().sum()

    def compute(self) -> dict[str, Tensor]:
        """The share, NaN over nothing, and the numbers of pairs that it and the accuracy count, and of their groups."""
        counts = {"pairs": self.pairs.float(), "groups": self.groups.float()}
        return {"longer_wins": (self.right / self.pairs).float()} | counts


def pair_metrics(prefix: str, device: torch.device | None = None, ensemble: bool = False) -> MetricCollection:
    """The metrics of one evaluation set, named `prefix` + metric, with sums as wide as the device has them."""
    dtype = sum_dtype(device or torch.device("cpu"))
    metrics: dict[str, Metric | MetricCollection] = {"figures": PairFigures(dtype), "ruler": LongerWins(dtype)}
    if ensemble:
        metrics["disagreement"] = Disagreement(dtype)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
