"""A Lagrange multiplier of one constraint (Moskovitz et al. 2023, arXiv 2310.04373)."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

Bound = Literal["at_least", "equal", "at_most"]
"""What a constraint asks of a reward: v >= threshold, v = threshold, v <= threshold."""


@dataclasses.dataclass(frozen=True)
class Descent:
    """How multipliers move: gradient descent with momentum, as in `torch.optim.SGD`.

    Not Adam: on a single number Adam moves by the learning rate whatever the size of the violation.

    Attributes:
        lr: learning rate.
        momentum: share of the last move that is kept.
        initial: where each multiplier starts; 0 is s = 0.5 for inequalities and s = 0 for equalities.
    """

    lr: float = 0.1
    momentum: float = 0.1
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not (self.lr > 0 and 0 <= self.momentum < 1 and math.isfinite(self.initial)):
            raise ValueError(
                "multipliers: lr must be positive, momentum at least 0 and below 1, initial finite, got "
                f"{dataclasses.astuple(self)}"
            )


class Multiplier:
    """The multiplier of one reward's constraint, squashed: s = sigmoid(mu) for inequalities, tanh(xi) for equalities.

    It descends s * slack, where slack is v - threshold (threshold - v for `at_most`) and v is a number: what is
    violated grows, what is satisfied shrinks.

    Args:
        bound: what the constraint asks.
        descent: how it moves.
    """

    def __init__(self, bound: Bound, descent: Descent) -> None:
        self.bound: Bound = bound
        self.descent = descent
        self.value = descent.initial
        self._velocity = 0.0

    @property
    def squashed(self) -> float:
        """s: in 0 to 1 for inequalities, in -1 to 1 for equalities."""
        if self.bound == "equal":
            return math.tanh(self.value)
        # The form that cannot overflow.
        return 0.5 * (1 + math.tanh(self.value / 2))

    @property
    def slope(self) -> float:
        """The derivative of s."""
        return 1 - self.squashed**2 if self.bound == "equal" else self.squashed * (1 - self.squashed)

    def slack(self, value: float, threshold: float) -> float:
        """By how much the constraint is met; negative where it falls short."""
        return threshold - value if self.bound == "at_most" else value - threshold

    def update(self, value: float, threshold: float) -> None:
        """One step down, from the batch's mean reward-to-go."""
        self._velocity = self.descent.momentum * self._velocity + self.slope * self.slack(value, threshold)
        self.value -= self.descent.lr * self._velocity

    def state_dict(self) -> dict[str, float]:
        """Everything that moves."""
        return {"value": self.value, "velocity": self._velocity}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a state."""
        self.value, self._velocity = state["value"], state["velocity"]
