"""Where a policy's log-probs go: of both sides of the comparisons, and beside those of the reference.

Direct alignment widens the gap between both sides' log-ratios, and may do so while the chosen side's falls.

Shape suffixes: N responses, G groups, C comparisons, F figures.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from grmlight.data.batch import GroupBatch
from grmlight.models.outputs import Outputs

LOG_RATIOS = ("chosen_logps", "rejected_logps", "chosen_log_ratio", "rejected_log_ratio")
"""Names of the figures, in nats a response: log-probs summed over tokens, and the same minus the reference's."""


def log_ratios_by_group(outputs: Outputs, batch: GroupBatch) -> Float[Tensor, "F G"]:
    """The figures of each group, means over its comparisons; those that need a reference only where there is one."""
    assert outputs.logps_N is not None
    logps_N = outputs.logps_N.detach()
    values = [logps_N] if outputs.reference_logps_N is None else [logps_N, logps_N - outputs.reference_logps_N]
    sides = (batch.better_C, batch.worse_C)
    return torch.stack([batch.mean_by_group(each.index_select(0, side_C)) for each in values for side_C in sides])


def log_ratio_terms(outputs: Outputs, batch: GroupBatch) -> dict[str, Float[Tensor, ""]]:
    """A training pack's share of the step's mean over groups, by name."""
    found_FG = log_ratios_by_group(outputs, batch)
    shares_F = (found_FG * batch.count_G).sum(dim=1) / batch.groups_in_step
    return dict(zip(LOG_RATIOS, shares_F, strict=False))


class LogRatios(Metric):
    """The figures over a whole evaluation set: means over its groups."""

    full_state_update = False
    sums: Tensor
    groups: Tensor

    def __init__(self, figures: int = len(LOG_RATIOS), dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(figures, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("groups", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def update(self, outputs: Outputs, batch: GroupBatch) -> None:
        """Add the groups of a batch."""
        self.sums += (log_ratios_by_group(outputs, batch) * batch.count_G).sum(dim=1).to(self.sums.dtype)
        self.groups += batch.count_G.sum().to(self.groups.dtype)

    def compute(self) -> dict[str, Tensor]:
        """The figures by name, NaN over nothing."""
        return dict(zip(LOG_RATIOS, (self.sums / self.groups).float(), strict=False))
