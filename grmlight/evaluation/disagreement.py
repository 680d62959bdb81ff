"""How far an ensemble's members are apart: the population variance over the members of recentered rewards and margins.

Shape suffixes: K members, N responses, G groups, C comparisons.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from grmlight.data.batch import GroupBatch
from grmlight.models.aggregation import disagreement
from grmlight.models.outputs import Outputs

DISAGREEMENT = ("disagreement", "margin_disagreement")
"""Names of the figures: of rewards, and of margins, in which a member's own zero does not count."""


def disagreement_by_group(rewards_KN: Float[Tensor, "K N"], batch: GroupBatch) -> tuple[Tensor, Tensor]:
    """Mean over each group's responses of the variance of their rewards; over its comparisons of that of the margin."""
    variance_N = disagreement(rewards_KN)
    zeros_G = variance_N.new_zeros(batch.groups)
    responses_G = zeros_G.index_add(0, batch.group_N, torch.ones_like(variance_N))
    rewards_G = zeros_G.index_add(0, batch.group_N, variance_N) / responses_G.clamp(min=1)
    margins_KC = rewards_KN.index_select(1, batch.better_C) - rewards_KN.index_select(1, batch.worse_C)
    return rewards_G, batch.mean_by_group(disagreement(margins_KC))


def disagreement_terms(outputs: Outputs, batch: GroupBatch) -> dict[str, Float[Tensor, ""]]:
    """A training pack's share of the step's mean over groups, by name; nothing for a single model."""
    if outputs.rewards_KN is None:
        return {}
    found = disagreement_by_group(outputs.rewards_KN.detach(), batch)
    shares = [(values_G * batch.count_G).sum() / batch.groups_in_step for values_G in found]
    return dict(zip(DISAGREEMENT, shares, strict=True))


class Disagreement(Metric):
    """Both figures over a whole evaluation set: means over its groups."""

    full_state_update = False
    sums: Tensor
    groups: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(DISAGREEMENT), dtype=dtype), dist_reduce_fx="sum")
        self.add_state("groups", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def update(self, outputs: Outputs, batch: GroupBatch) -> None:
        """Add the groups of a batch."""
        assert outputs.rewards_KN is not None
        found_2G = torch.stack(disagreement_by_group(outputs.rewards_KN, batch))
        self.sums += (found_2G * batch.count_G).sum(dim=1).to(self.sums.dtype)
        self.groups += batch.count_G.sum().to(self.groups.dtype)

    def compute(self) -> dict[str, Tensor]:
        """The figures by name, NaN over nothing."""
        return dict(zip(DISAGREEMENT, (self.sums / self.groups).float(), strict=True))
