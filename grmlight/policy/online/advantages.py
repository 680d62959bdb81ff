"""Advantages of tokens and answers: GAE, leave-one-out, group-normalized.

They are computed on the CPU from the rollouts of all ranks, in float64, so that they do not depend on how many ranks
there are. Shape suffixes: L answer tokens, laid end to end; N answers; T tokens of the longest one.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Advantage = Literal["gae", "rloo", "grpo"]
Spread = Literal["group", "batch", "none"]


def gae(
    rewards_L: Float[Tensor, " L"],
    values_L: Float[Tensor, " L"],
    tokens_N: Int[Tensor, " N"],
    gamma: float,
    lam: float,
) -> Float[Tensor, " L"]:
    """Generalized advantage estimation within each answer; behind its last token the value is 0.

    `A_t = delta_t + gamma lam A_(t+1)` with `delta_t = r_t + gamma V_(t+1) - V_t`.

    Args:
        rewards_L: of each token.
        values_L: of the state before each token.
        tokens_N: tokens of each answer, at least 1.
        gamma: discount a token.
        lam: 0 trusts the values, 1 the rewards.

    Source: Schulman et al. 2016 (arXiv 1506.02438), eq. 16.
    """
    rewards_NT, values_NT = padded(rewards_L, tokens_N), padded(values_L, tokens_N)
    next_NT = torch.cat([values_NT[:, 1:], torch.zeros_like(values_NT[:, :1])], dim=1)
    return unpadded(_discounted(rewards_NT + gamma * next_NT - values_NT, gamma * lam), tokens_N)


def rewards_to_go(rewards_L: Float[Tensor, " L"], tokens_N: Int[Tensor, " N"], gamma: float) -> Float[Tensor, " L"]:
    """The discounted sum of rewards from each token to its answer's end."""
    return unpadded(_discounted(padded(rewards_L, tokens_N), gamma), tokens_N)


def leave_one_out(scores_N: Float[Tensor, " N"], group_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Each score minus the mean of the others of its group; NaN scores enter nothing and get NaN.

    An answer that is alone in its group, or alone with a score, has nothing to be compared with: 0.
    Source: RLOO, Ahmadian et al. 2024 (arXiv 2402.14740), eq. 8.
    """
    known_N = ~scores_N.isnan()
    count_N, sum_N = _over_group(scores_N, known_N, group_N)
    others_N = (sum_N - scores_N) / (count_N - 1).clamp(min=1)
    return torch.where(count_N > 1, scores_N - others_N, scores_N * 0)


def group_normalized(scores_N: Float[Tensor, " N"], group_N: Int[Tensor, " N"], spread: Spread) -> Float[Tensor, " N"]:
    """Each score minus its group's mean, divided by a standard deviation; NaN scores enter nothing and get NaN.

    Args:
        scores_N: of each answer.
        group_N: its group.
        spread: what divides: "group", the group's own standard deviation (GRPO, arXiv 2402.03300, section 4.1.2);
            "batch", that of all centered scores (REINFORCE++, arXiv 2501.03262); "none", nothing (Dr. GRPO, arXiv
            2503.20783).
            Deviations are sample ones (divided by one less than the number), as in both.
    """
    known_N = ~scores_N.isnan()
    count_N, sum_N = _over_group(scores_N, known_N, group_N)
    centered_N = scores_N - sum_N / count_N.clamp(min=1)
    if spread == "none":
        return centered_N
    if spread == "batch":
        deviation = centered_N[known_N].std() if int(known_N.sum()) > 1 else centered_N.new_zeros(())
        return centered_N / (deviation + 1e-4)
    _, squares_N = _over_group(centered_N.square(), known_N, group_N)
    return centered_N / ((squares_N / (count_N - 1).clamp(min=1)).sqrt() + 1e-4)


def whiten(
    values: Float[Tensor, " M"], known: Bool[Tensor, " M"], center: bool = True, floor: float = 1e-8
) -> Float[Tensor, " M"]:
    """Values with mean 0 and variance 1 over the known ones; without `center` the mean stays what it was."""
    if not known.any():
        return values
    mean = values[known].mean()
    scaled = (values - mean) * (values[known].var(correction=0) + floor).rsqrt()
    return scaled if center else scaled + mean


def padded(values_L: Float[Tensor, " L"], tokens_N: Int[Tensor, " N"]) -> Float[Tensor, "N T"]:
    """Answers as rows, with zeros behind them."""
    rows_NT = values_L.new_zeros(len(tokens_N), int(tokens_N.max()))
    rows_NT[_there(tokens_N)] = values_L
    return rows_NT


def unpadded(values_NT: Float[Tensor, "N T"], tokens_N: Int[Tensor, " N"]) -> Float[Tensor, " L"]:
    """Rows as answers laid end to end."""
    return values_NT[_there(tokens_N)]


def _there(tokens_N: Int[Tensor, " N"]) -> Bool[Tensor, "N T"]:
    return torch.arange(int(tokens_N.max()))[None] < tokens_N[:, None]


def _discounted(values_NT: Float[Tensor, "N T"], factor: float) -> Float[Tensor, "N T"]:
    """Sums from each column to the end, each column further on multiplied by `factor` once more."""
    sums_NT = torch.empty_like(values_NT)
    running_N = values_NT.new_zeros(len(values_NT))
    for column in reversed(range(values_NT.shape[1])):
        running_N = values_NT[:, column] + factor * running_N
        sums_NT[:, column] = running_N
    return sums_NT


def _over_group(
    values_N: Float[Tensor, " N"], known_N: Bool[Tensor, " N"], group_N: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """For each answer the number of known values in its group, and their sum."""
    zeros_G = values_N.new_zeros(int(group_N.max()) + 1)
    count_G = zeros_G.index_add(0, group_N, known_N.to(values_N.dtype))
    sum_G = zeros_G.index_add(0, group_N, values_N.where(known_N, 0.0))
    return count_G[group_N], sum_G[group_N]
