"""What a model returns, and what may be asked of it."""

from __future__ import annotations

import dataclasses
from enum import StrEnum

from jaxtyping import Float
from torch import Tensor


class Signal(StrEnum):
    """A quantity that the one forward computes only if someone needs it."""

    CHOSEN_LOGPS = "chosen_logps"
    """Log-probs of the better responses alone; the others are NaN."""
    LOGPS = "logps"
    """Log-probs of every response."""
    REFERENCE_LOGPS = "reference_logps"
    """Log-probs of every response under the start model, without gradient: the batch's, or computed."""
    VALUES = "values"
    """Of a policy: its critic's value before each scored token."""
    HIDDEN = "hidden"
    """The hidden state that the reward is read from."""


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The result of one forward over a GroupBatch (legend: K members, N responses, L scored tokens, H hidden).

    Attributes:
        rewards_N: one reward a response, float32.
        logps_N: sum of the log-probs of each response's scored tokens, float32, in nats.
        reference_logps_N: the same under the reference.
        logps_L: of a policy: the log-prob of each scored token.
        reference_logps_L: the same under the reference, where the batch does not bring the responses' sums.
        values_KL: of a policy's critic: for each of its K heads the value before each scored token, float32.
        hidden_NH: last hidden state of each response, in the backbone's dtype.
        rewards_KN: of an ensemble: each member's rewards, recentered.
        members: of an ensemble: each member's own outputs, as the member alone would give them. Losses read these.
    """

    rewards_N: Float[Tensor, " N"]
    logps_N: Float[Tensor, " N"] | None = None
    reference_logps_N: Float[Tensor, " N"] | None = None
    hidden_NH: Float[Tensor, "N H"] | None = None
    logps_L: Float[Tensor, " L"] | None = None
    reference_logps_L: Float[Tensor, " L"] | None = None
    values_KL: Float[Tensor, "K L"] | None = None
    rewards_KN: Float[Tensor, "K N"] | None = None
    members: tuple[Outputs, ...] = ()
