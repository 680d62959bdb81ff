"""Pure loss functions: tensors in, one value for each comparison or response out, nothing reduced.

Shape suffixes: C comparisons, N responses, L response tokens. `logps` of responses are sums over their
scored tokens, in nats.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

IpoScale = Literal["paper", "daa"]


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


def log_ratio_margin(
    better_C: Float[Tensor, " C"],
    worse_C: Float[Tensor, " C"],
    reference_better_C: Float[Tensor, " C"],
    reference_worse_C: Float[Tensor, " C"],
) -> Float[Tensor, " C"]:
    """What direct alignment drives: h, the log-ratio to the reference of the better response minus the worse one's."""
    return (better_C - reference_better_C) - (worse_C - reference_worse_C)


def length_margin(
    better_tokens_C: Tensor, worse_tokens_C: Tensor, beta: float, penalty: float
) -> Float[Tensor, " C"] | float:
    """What is added to the margin h so that the reward that it stands for pays `penalty` for each token.

    Maximizing `r - penalty |y|` under a KL penalty of factor beta moves the optimum's h by `-penalty / beta` times the
    difference in tokens, so the loss sees `h + (penalty / beta) (|better| - |worse|)`. Source: Park et al. 2024
    (length-regularized DPO).
    """
    return penalty / beta * (better_tokens_C - worse_tokens_C)


def slic(margin_C: Float[Tensor, " C"], beta: float, label_C: Float[Tensor, " C"] | float = 1.0) -> Float[Tensor, " C"]:
    """SLiC's hinge on the log-ratio margin h, `max(0, 1 - beta h)`; a soft label p mixes both sides' losses.

    Source: Zhao et al. 2023 (SLiC-HF), in the form of Rafailov et al. 2024 (arXiv 2406.02900).
    """
    return label_C * F.relu(1 - beta * margin_C) + (1 - label_C) * F.relu(1 + beta * margin_C)


def ipo(
    margin_C: Float[Tensor, " C"], beta: float, scale: IpoScale = "paper", label_C: Float[Tensor, " C"] | float = 1.0
) -> Float[Tensor, " C"]:
    """IPO's square on the log-ratio margin h of summed log-probs; a soft label p mixes both sides' losses.

    "paper" is `(h - 1 / (2 beta))^2`, where beta is the paper's tau (Azar et al. 2023, eq. 17); "daa" is
    `(beta h - 1)^2` (Rafailov et al. 2024). The same optimum takes a `beta` twice as large in "daa" as in "paper", and
    the gradients then differ by a factor of that beta squared.
    """
    if scale == "paper":
        return label_C * (margin_C - 0.5 / beta).square() + (1 - label_C) * (margin_C + 0.5 / beta).square()
    return label_C * (beta * margin_C - 1).square() + (1 - label_C) * (beta * margin_C + 1).square()


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
