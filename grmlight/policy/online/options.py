"""What may be decided about online optimization, beside the KL (`controllers`) and how answers are drawn."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from grmlight.policy.online.advantages import Advantage, Spread
from grmlight.policy.online.minibatches import Average


@dataclasses.dataclass(frozen=True)
class Update:
    """How the policy learns from an iteration's answers. What is None is as the advantage's paper has it.

    Attributes:
        epochs: passes over the answers.
        minibatches: optimizer steps of a pass.
        clip: c of the clipped objective: the ratio to the sampling policy counts within 1 - c to 1 + c.
        ratio: "token" clips each token's ratio (PPO, GRPO), "answer" that of whole answers (RLOO).
        average: the loss is a mean over the step's "tokens" (PPO), or over its "answers" of the mean over their tokens
            (GRPO, RLOO).
        gamma: discount a token, of "gae".
        lam: lambda of "gae".
        whiten_advantages: give a step's advantages mean 0 and variance 1; "gae" does with the KL in the reward. Beside
            a KL in the loss it would change what the coefficient means.
        spread: what divides advantages of "grpo": the "group"'s standard deviation, the "batch"'s, or "none".
        value_weight: of the critic's loss.
        value_clip: values may move so far from their old ones before they count as clipped; None for any distance.
        max_gradient_norm: gradients are scaled down to it; None leaves them.
        tokens_per_pack: tokens of one forward, about. It changes memory, never the result.
    """

    epochs: int = 1
    minibatches: int = 1
    clip: float = 0.2
    ratio: Literal["token", "answer"] | None = None
    average: Average | None = None
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool | None = None
    spread: Spread = "group"
    value_weight: float = 0.5
    value_clip: float | None = 0.2
    max_gradient_norm: float | None = 1.0
    tokens_per_pack: int = 16_384

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, values in (("ratio", ("token", "answer")), ("average", ("tokens", "answers"))):
            if getattr(self, name) not in (None, *values):
                raise ValueError(f"update.{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}")
        if self.spread not in ("group", "batch", "none"):
            raise ValueError(f"update.spread must be 'group', 'batch' or 'none', got {self.spread!r}")

    def _check_numbers(self) -> None:
        for name in ("epochs", "minibatches", "tokens_per_pack"):
            if getattr(self, name) < 1:
                raise ValueError(f"update.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"update.{name} must lie between 0 and 1, got {getattr(self, name)}")
        for name in ("clip", "value_clip", "max_gradient_norm"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"update.{name} must be above 0, got {value}")
        if not 0 <= self.value_weight < math.inf:
            raise ValueError(f"update.value_weight must be finite and at least 0, got {self.value_weight}")

    def of(self, advantage: Advantage, whitens: bool) -> Update:
        """With nothing left open; `whitens` is what `whiten_advantages` is where it is."""
        own = {
            "ratio": "answer" if advantage == "rloo" else "token",
            "average": "tokens" if advantage == "gae" else "answers",
            "whiten_advantages": whitens,
        }
        return dataclasses.replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})


@dataclasses.dataclass(frozen=True)
class Shaping:
    """What becomes of the score before the KL penalty.

    Attributes:
        whiten: give an iteration's scores mean 0 and variance 1.
        clip: then bound them to plus and minus this; None for no bound.
        cut_penalty: then subtract this from answers that were cut off rather than ended by themselves.
    """

    whiten: bool = False
    clip: float | None = None
    cut_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"shaping.clip must be above 0, got {self.clip}")
        if not 0 <= self.cut_penalty < math.inf:
            raise ValueError(f"shaping.cut_penalty must be finite and at least 0, got {self.cut_penalty}")
