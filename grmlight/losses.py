"""Pure loss functions: tensors in, one value for each comparison or response out, nothing reduced.

Shape suffixes: C comparisons, N responses, L response tokens. `logps` of responses are sums over the scored tokens of a response, in nats.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def preference_loss(
    better_C: Float[Tensor, " C"],
    worse_C: Float[Tensor, " C"],
    label_C: Float[Tensor, " C"] | float = 1.0,
    margin_C: Float[Tensor, " C"] | float = 0.0,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " C"]:
    """Bradley-Terry negative log-likelihood of a preference.

    With D = better - worse - margin and p the smoothed label, `-p log sigmoid(D) - (1 - p) log sigmoid(-D)`.
    `label` 1 is a sure preference, 0.5 a tie. Label smoothing moves p by `label_smoothing` toward the other side.
    Source: Bradley and Terry 1952; margin: Touvron et al. 2023 (Llama 2); smoothing: Wang et al. 2024.
    """
    difference_C = better_C - worse_C - margin_C
    p_C = label_C * (1 - label_smoothing) + (1 - label_C) * label_smoothing
    return -p_C * F.logsigmoid(difference_C) - (1 - p_C) * F.logsigmoid(-difference_C)


def sft_log_sigmoid(logps_N: Float[Tensor, " N"], beta: float) -> Float[Tensor, " N"]:
    """GRM's SFT regularizer, `-log sigmoid(beta log pi(y|x))`. The paper's default."""
    return -F.logsigmoid(beta * logps_N)


def sft_nll(logps_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Plain negative log-likelihood of the response, summed over its tokens, in nats."""
    return -logps_N


def sft_token_mean(logps_N: Float[Tensor, " N"], tokens_N: Tensor) -> Float[Tensor, " N"]:
    """Negative log-likelihood a token, in nats: free of the response's length."""
    return -logps_N / tokens_N.clamp(min=1)


def dpo(
    better_C: Float[Tensor, " C"],
    worse_C: Float[Tensor, " C"],
    beta: float,
    reference_better_C: Float[Tensor, " C"] | float = 0.0,
    reference_worse_C: Float[Tensor, " C"] | float = 0.0,
    label_C: Float[Tensor, " C"] | float = 1.0,
) -> Float[Tensor, " C"]:
    """DPO as a regularizer, on log-probs; without a reference its log-ratio is taken as 0.

    `label` is the probability that `better` is better, as in `preference_loss`.
    """
    reference_C = torch.as_tensor(reference_better_C) - torch.as_tensor(reference_worse_C)
    return preference_loss(beta * (better_C - worse_C - reference_C), torch.zeros_like(better_C), label_C)


def centering(better_C: Float[Tensor, " C"], worse_C: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Squared sum of a pair's rewards, which draws them to a mean of 0. Source: Eisenstein et al. 2023."""
    return (better_C + worse_C).square()


def score_l2(better_C: Float[Tensor, " C"], worse_C: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Half the summed squares of a pair's rewards. Source: Coste et al. 2023, released code."""
    return 0.5 * (better_C.square() + worse_C.square())


def positive_reward(mean_reward: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """`-log sigmoid` of the mean reward of the better responses. Source: the GRM authors' released code."""
    return -F.logsigmoid(mean_reward)


def clipped_objective(
    log_ratio_L: Float[Tensor, " L"], advantage_L: Float[Tensor, " L"], clip: float
) -> Float[Tensor, " L"]:
    """PPO's loss, `-min(r A, clip(r, 1 - c, 1 + c) A)` with r = exp(log ratio of the new to the sampling policy).

    Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7, with the sign of a loss.
    """
    ratio_L = log_ratio_L.exp()
    return torch.maximum(-advantage_L * ratio_L, -advantage_L * ratio_L.clamp(1 - clip, 1 + clip))


def clipped_value_loss(
    values_L: Float[Tensor, " L"], old_L: Float[Tensor, " L"], returns_L: Float[Tensor, " L"], clip: float
) -> Float[Tensor, " L"]:
    """Half the squared error of values, or that of values moved at most `clip` from the old ones, if it is larger.

    Source: Schulman et al. 2016's trust region as in OpenAI's `baselines` PPO2; an infinite `clip` is the plain error.
    """
    near_L = torch.minimum(torch.maximum(values_L, old_L - clip), old_L + clip)
    return 0.5 * torch.maximum((values_L - returns_L).square(), (near_L - returns_L).square())
