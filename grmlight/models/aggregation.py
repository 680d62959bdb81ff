"""How an ensemble makes one reward of its members' rewards, and how far they are apart.

Shape suffixes: K members, N responses, M anything else that members have a value for.
"""

from __future__ import annotations

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

Aggregation = Literal["mean", "wco", "uwo"]
"""mean; wco, worst-case optimization: the minimum; uwo, uncertainty-weighted optimization: mean minus a variance."""


def check_aggregation(aggregation: str, variance_weight: float) -> None:
    """Refuse an unknown name and a factor that is none. Errors: ValueError in one line."""
    if aggregation not in get_args(Aggregation):
        raise ValueError(f"aggregation must be one of {', '.join(get_args(Aggregation))}, got {aggregation!r}")
    if not 0 <= variance_weight < float("inf"):
        raise ValueError(f"variance_weight must be finite and at least 0, got {variance_weight}")


def aggregate(
    rewards_KN: Float[Tensor, "K N"], aggregation: Aggregation, variance_weight: float
) -> Float[Tensor, " N"]:
    """The ensemble's reward of each response.

    Args:
        rewards_KN: the members' rewards, recentered: minimum and variance say nothing over members of different zeros.
        aggregation: "mean", "wco" (minimum) or "uwo" (mean - variance_weight * population variance).
        variance_weight: lambda of "uwo"; 0 is the mean.

    Source: Coste et al. 2024 (arXiv 2310.02743), section 3.
    """
    if aggregation == "wco":
        return rewards_KN.amin(dim=0)
    mean_N = rewards_KN.mean(dim=0)
    return mean_N if aggregation == "mean" else mean_N - variance_weight * disagreement(rewards_KN)


def disagreement(values_KM: Float[Tensor, "K M"]) -> Float[Tensor, " M"]:
    """Population variance over the members (divided by their number, not by one less)."""
    return values_KM.var(dim=0, correction=0)
