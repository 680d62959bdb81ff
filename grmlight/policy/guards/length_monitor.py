"""LengthMonitor: warns when a policy learns to say more rather than better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from grmlight.policy.guards.guard import Guard
from grmlight.policy.kl import Measured


class LengthMonitor(Guard):
    """Logs `guard/tokens` (mean length of an answer), `guard/growth` (over the first measurement's) and `guard/cut`.

    `cut` is the share of answers that do not end by themselves. A figure beyond its bound is warned of once.

    Args:
        max_growth: bound of the growth.
        max_cut: bound of the share cut off.
    """

    def __init__(self, max_growth: float = 2.0, max_cut: float = 0.5) -> None:
        super().__init__()
        if max_growth <= 0 or not 0 <= max_cut <= 1:
            raise ValueError(
                f"LengthMonitor: max_growth must be above 0, max_cut from 0 to 1, got {max_growth}, {max_cut}"
            )
        self.max_growth, self.max_cut = max_growth, max_cut
        self.first: float | None = None
        self.told: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """The first mean length, and what was warned of."""
        return {"first": self.first, "told": list(self.told)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.first, self.told = state_dict["first"], list(state_dict["told"])

    def look(self, trainer: Trainer, prompts: Sequence[Measured]) -> None:
        """Measure, log, and warn at a bound."""
        tokens, cut = (
            float(np.mean([each.means["tokens"] for each in prompts])),
            1 - float(np.mean([each.means["ended"] for each in prompts])),
        )
        self.first = tokens if self.first is None else self.first
        growth = tokens / max(self.first, 1e-9)
        self.record(trainer, {"tokens": tokens, "growth": growth, "cut": cut})
        if growth > self.max_growth:
            self._tell(trainer, "growth", f"answers are {growth:.2f} times as long as at first ({tokens:.1f} tokens)")
        if cut > self.max_cut:
            self._tell(trainer, "cut", f"{100 * cut:.0f}% of the answers are cut off at the length limit")

    def _tell(self, trainer: Trainer, name: str, text: str) -> None:
        if name not in self.told:
            self.told.append(name)
            self.warn(trainer, f"{name} is beyond max_{name} {getattr(self, f'max_{name}'):g}: {text}")
