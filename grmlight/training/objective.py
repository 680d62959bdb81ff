"""The training objective of one pack, as a pure function.

    loss = (1 - sum of convex weights) * preference + sum of weight * penalty

Each term is a sum over the pack's groups, scaled so that the mean over ranks (by DDP or FSDP2) of the sum over packs
divided by their number (by Lightning) is exactly the mean over the groups of the whole step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from grmlight.data.batch import GroupBatch


@dataclasses.dataclass(frozen=True)
class Penalty:
    """A regularizer's values on one pack.

    Attributes:
        values: one unweighted value a group, or a single one for the pack.
        weight: its factor at this step.
        convex: whether the weight is taken from the preference loss.
    """

    values: Float[Tensor, " G"] | Float[Tensor, ""]
    weight: float
    convex: bool


@dataclasses.dataclass(frozen=True)
class Objective:
    """A pack's share of the step.

    Attributes:
        loss: the pack's weighted sum over its groups, divided by the groups of the whole step.
        terms: each unweighted term by name, reduced in the same way and detached.
    """

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]


def objective(preference_G: Float[Tensor, " G"], penalties: Mapping[str, Penalty], batch: GroupBatch) -> Objective:
    """Combine the preference loss (comparison weights included) and the penalties of one pack.

    A group's mean comparison weight multiplies its penalties too; weights never change the divisor.

    Errors: ValueError if the convex weights sum to more than 1, naming them.
    """
    convex = {name: penalty.weight for name, penalty in penalties.items() if penalty.convex}
    check_convex(convex)
    terms = {"preference": _reduce(preference_G, batch.count_G, batch)}
    weight_G = batch.count_G * batch.mean_by_group(batch.weight_C)
    loss = (1 - sum(convex.values())) * terms["preference"]
    for name, penalty in penalties.items():
        terms[name] = _reduce(penalty.values, weight_G if penalty.values.dim() else batch.count_G, batch)
        loss = loss + penalty.weight * terms[name]
    return Objective(loss, {name: value.detach() for name, value in terms.items()})


def check_convex(weights: Mapping[str, float]) -> None:
    """Refuse convex weights that would leave the preference loss less than nothing.

    Errors: ValueError that names them.
    """
    if (total := sum(weights.values())) > 1:
        raise ValueError(f"convex weights sum to {total:g}, above 1: {dict(weights)}; lower one of them")


def _reduce(values: Tensor, factor_G: Tensor, batch: GroupBatch) -> Tensor:
    """Sum over the pack's counted groups, over the groups of the step; a value of the pack stands for each group."""
    return (values * factor_G).sum() / batch.groups_in_step
