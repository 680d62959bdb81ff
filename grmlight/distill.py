"""A linear head that stands in for an MLP head, fitted to its rewards on given pairs, and how well it does.

Servers know linear classifiers alone. The fit is a ridge regression of each pair's difference of rewards on the
difference of its last hidden states; the strength of the ridge is chosen on a tenth of the pairs and the agreement
measured on another fifth, neither of which is in the fit. Shape suffixes: C pairs, H hidden size, N responses.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from grmlight.data.loader import GroupLoader
from grmlight.data.prepare import Prepared
from grmlight.models import HeadConfig, RewardHead, RewardModel, Signal, evaluating

MIN_PAIRS = 20
"""Fewer would leave too little to measure on."""

_RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
"""Strengths to choose from, relative to the mean square of a coordinate."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a distilled head does on pairs that it was not fitted to.

    Attributes:
        pairs: pairs that were held out.
        fitted: pairs of the fit and of the choice of its ridge.
        agreement: share of the held-out pairs that both heads order alike.
        correlation: Pearson's, of the two heads' differences of rewards.
        accuracy: share of the held-out pairs that the given model orders as labeled.
        distilled_accuracy: the same of the distilled head.
    """

    pairs: int
    fitted: int
    agreement: float
    correlation: float
    accuracy: float
    distilled_accuracy: float

    def __str__(self) -> str:
        return (
            f"distilled into a linear head on {self.fitted} pairs; on {self.pairs} others both heads order "
            f"{self.agreement:.1%} alike (correlation of differences {self.correlation:.3f}), accuracy "
            f"{self.accuracy:.1%} before and {self.distilled_accuracy:.1%} after"
        )

    def entries(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)


def distill(model: RewardModel, prepared: Prepared, pairs_per_batch: int = 64) -> Agreement:
    """Replace a model's head, in place, by a linear one that gives nearly the same differences.

    Args:
        model: the model.
        prepared: pairs, read as the model reads them.
        pairs_per_batch: pairs of one forward.

    Errors: ValueError for too few pairs.
    """
    states_CH, wanted_C, (side_C, place_C), means = _differences(model, prepared, pairs_per_batch)
    count = len(wanted_C)
    if count < MIN_PAIRS:
        raise ValueError(f"{prepared.source}: holds {count} usable pairs; distillation needs at least {MIN_PAIRS}")
    held_C, tuned_C = place_C % 5 == 4, place_C % 10 == 3
    fit_C = ~(held_C | tuned_C)
    weights = [_ridge(states_CH[fit_C], wanted_C[fit_C], strength) for strength in _RIDGES]
    errors = [(states_CH[tuned_C] @ weight_H - wanted_C[tuned_C]).square().mean().item() for weight_H in weights]
    weight_H = weights[errors.index(min(errors))]
    found_C = states_CH[held_C] @ weight_H
    _replace_head(model, weight_H, means)
    return _agreement(found_C, wanted_C[held_C], side_C[held_C], count - int(held_C.sum()))


@torch.inference_mode()
def _differences(
    model: RewardModel, prepared: Prepared, pairs_per_batch: int
) -> tuple[Float[Tensor, "C H"], Float[Tensor, " C"], tuple[Tensor, Tensor], tuple[Float[Tensor, " H"], float]]:
    """Each comparison's better minus worse, in float64.

    Of hidden states; of rewards; its labeled side with the number of its group, since the comparisons of one ranking
    follow from each other; and the means of states and rewards over responses.
    """
    states, rewards, sides, places = [], [], [], []
    totals_H, total, responses, groups = torch.zeros(()), 0.0, 0, 0
    with evaluating(model):
        for batch in GroupLoader(prepared.store, pairs_per_batch):
            out = model(batch, frozenset({Signal.HIDDEN}))
            hidden_NH, rewards_N = out.hidden_NH.double(), out.rewards_N.double()
            states.append(hidden_NH[batch.better_C] - hidden_NH[batch.worse_C])
            rewards.append(rewards_N[batch.better_C] - rewards_N[batch.worse_C])
            sides.append((batch.label_C - 0.5).sign())
            places.append(batch.group_C + groups)
            groups += batch.groups
            totals_H = totals_H + hidden_NH.sum(0)
            total, responses = total + rewards_N.sum().item(), responses + len(rewards_N)
    told = torch.cat(sides), torch.cat(places)
    return torch.cat(states), torch.cat(rewards), told, (totals_H / responses, total / responses)


def _ridge(states_CH: Float[Tensor, "C H"], wanted_C: Float[Tensor, " C"], strength: float) -> Float[Tensor, " H"]:
    """Weights of least squares plus `strength` times the mean square of a coordinate."""
    products_HH = states_CH.T @ states_CH
    penalty = strength * products_HH.diagonal().mean().clamp(min=1e-12)
    eye_HH = torch.eye(len(products_HH), dtype=products_HH.dtype)
    return torch.linalg.solve(products_HH + penalty * eye_HH, states_CH.T @ wanted_C)


def _replace_head(model: RewardModel, weight_H: Tensor, means: tuple[Tensor, float]) -> None:
    mean_H, mean = means
    config = HeadConfig(kind="linear", dropout=0.0)
    head = RewardHead(len(weight_H), config)
    bias = torch.tensor([mean - (weight_H @ mean_H).item()])
    head.load_state_dict({"summary.weight": weight_H[None].float(), "summary.bias": bias})
    model.head, model.head_config = head, config
    # The rewards that were fitted have both in them.
    model.reward_shift.zero_()
    model.reward_scale.fill_(1.0)


def _agreement(found_C: Tensor, wanted_C: Tensor, side_C: Tensor, fitted: int) -> Agreement:
    def accuracy(difference_C: Tensor) -> float:
        """As everywhere: ties of the label do not count, equal rewards count one half."""
        told_C = side_C != 0
        return ((difference_C.sign() * side_C + 1) / 2)[told_C].double().mean().item()

    correlation = torch.corrcoef(torch.stack([found_C, wanted_C]))[0, 1].item()
    return Agreement(
        pairs=len(wanted_C),
        fitted=fitted,
        agreement=(found_C.sign() == wanted_C.sign()).double().mean().item(),
        correlation=correlation,
        accuracy=accuracy(wanted_C),
        distilled_accuracy=accuracy(found_C),
    )
