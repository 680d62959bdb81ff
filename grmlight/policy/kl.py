"""KL of a policy to its reference, estimated from what the policy samples.

For an answer sampled from the policy, with `log_ratio = log pi - log reference` of each token: the k1 of its tokens is
unbiased for the KL and may be negative; k3 is unbiased too, never negative, and varies less where both are close;
k2 is half the square, biased, and not to be trusted beyond a few nats. Source: Schulman 2020, "Approximating KL
Divergence".

Shape suffixes: L response tokens, N responses.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def k1(logps_L: Float[Tensor, " L"], reference_logps_L: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """The log-ratio of each token, in nats."""
    return logps_L - reference_logps_L


def k2(logps_L: Float[Tensor, " L"], reference_logps_L: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """Half the squared log-ratio of each token. The curves of Coste et al. 2023 are drawn over it."""
    return 0.5 * (logps_L - reference_logps_L).square()


def k3(logps_L: Float[Tensor, " L"], reference_logps_L: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """`exp(-log_ratio) - 1 + log_ratio` of each token, at least 0."""
    log_ratio_L = logps_L - reference_logps_L
    return torch.expm1(-log_ratio_L) + log_ratio_L


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""By name."""
