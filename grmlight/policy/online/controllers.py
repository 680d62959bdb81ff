"""The coefficient of the KL to the reference: fixed, or steered to a target."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

Where = Literal["reward", "loss"]
Estimator = Literal["k1", "k2", "k3"]

_MOST = 0.2
"""The error that a single update of the coefficient sees, at most."""


@dataclasses.dataclass(frozen=True)
class KlOptions:
    """How the policy is held to its reference.

    Attributes:
        where: "reward": a penalty of each token, by k1; "loss": a term of the loss, by `estimator`: a mean over tokens
            as the loss is, or with `update.ratio` "answer" (RLOO's) over answers of the sum of each one's tokens.
        coefficient: beta, the first one if there is a target.
        estimator: of the loss: "k2", whose gradient on the policy's own samples is the KL's; or "k3" (GRPO), whose
            gradient there is that of the KL turned around, of the reference to the policy.
        target: nats an answer that the coefficient is steered to; None keeps it fixed.
        rate: of steering: `coefficient *= 1 + rate * clip(kl / target - 1, -0.2, 0.2)` once an iteration.
        limit: nats an answer, on the mean, above which the run stops and says so; None for no limit.
    """

    where: Where = "reward"
    coefficient: float = 0.05
    estimator: Estimator = "k3"
    target: float | None = None
    rate: float = 0.1
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.where not in ("reward", "loss"):
            raise ValueError(f"kl.where must be 'reward' or 'loss', got {self.where!r}")
        if self.estimator not in ("k2", "k3"):
            raise ValueError(
                f"kl.estimator must be 'k2' or 'k3', got {self.estimator!r}: k1 in a loss has a gradient of mean 0"
            )
        if not 0 <= self.coefficient < math.inf:
            raise ValueError(f"kl.coefficient must be finite and at least 0, got {self.coefficient}")
        for name in ("target", "limit", "rate"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"kl.{name} must be finite and above 0, got {value}")


class KlController:
    """Holds the coefficient.

    Args:
        options: the first coefficient, the target and the rate.

    Attributes:
        coefficient: beta of the next iteration.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), eq. 4; as in Moskovitz et al. 2023 (arXiv 2310.04373).
    """

    def __init__(self, options: KlOptions) -> None:
        self.options = options
        self.coefficient = options.coefficient

    def update(self, kl: float) -> None:
        """After an iteration whose answers had this KL, in nats an answer."""
        if self.options.target is not None and math.isfinite(kl):
            error = min(max(kl / self.options.target - 1, -_MOST), _MOST)
            self.coefficient *= 1 + self.options.rate * error

    def state_dict(self) -> dict[str, Any]:
        """The coefficient."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; a fixed coefficient is what the options say now."""
        if self.options.target is not None:
            self.coefficient = float(state["coefficient"])
