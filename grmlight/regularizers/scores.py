"""Penalties on the rewards themselves: the baselines that keep scores small, centered or positive."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from grmlight import losses
from grmlight.data.batch import GroupBatch
from grmlight.models.outputs import Outputs
from grmlight.regularizers.base import Mixing, Ramp, Regularizer


class RewardCentering(Regularizer):
    """Draw the mean reward to 0: `weight (r_better + r_worse)^2`. Source: Eisenstein et al. 2023."""

    def __init__(
        self, weight: float | Ramp = 0.01, mixing: Mixing = "additive", name: str = "reward_centering"
    ) -> None:
        super().__init__(weight, mixing, name)

    def penalty(self, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, " G"]:
        """The mean over a group's comparisons of the squared sum of their rewards."""
        rewards_N = outputs.rewards_N
        return batch.mean_by_group(losses.centering(rewards_N[batch.better_C], rewards_N[batch.worse_C]))


class ScoreL2(Regularizer):
    """Keep scores small: `weight (r_better^2 + r_worse^2) / 2`. Source: Coste et al. 2023, released code."""

    def __init__(self, weight: float | Ramp = 0.001, mixing: Mixing = "additive", name: str = "score_l2") -> None:
        super().__init__(weight, mixing, name)

    def penalty(self, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, " G"]:
        """The mean over a group's comparisons of half their summed squares."""
        rewards_N = outputs.rewards_N
        return batch.mean_by_group(losses.score_l2(rewards_N[batch.better_C], rewards_N[batch.worse_C]))


class PositiveReward(Regularizer):
    """Keep the better responses' mean reward positive: `-weight log sigmoid(mean r_better)`.

    The mean runs over a pack, so this penalty is no sum over groups. Source: the GRM authors' released code.
    """

    per_group = False

    def __init__(self, weight: float | Ramp = 0.1, mixing: Mixing = "additive", name: str = "positive_reward") -> None:
        super().__init__(weight, mixing, name)

    def penalty(self, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, ""]:
        """`-log sigmoid` of the pack's mean reward of better responses, repeated groups left out."""
        count_C = batch.count_G[batch.group_C]
        total = (outputs.rewards_N[batch.better_C] * count_C).sum()
        return losses.positive_reward(total / count_C.sum().clamp(min=1))
