"""Meter: sums of training figures that stay on the device until they are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


class Meter:
    """Adds up figures over packs and steps; reading them reduces over ranks once."""

    def __init__(self) -> None:
        self.since = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add a pack's figures; nothing waits for the device."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def totals(self, step: int, reduce: Reduce) -> dict[str, float]:
        """The sums over all ranks since the last reset.

        Errors: ValueError that names the figures which are not finite.
        """
        if not self._sums:
            return {}
        totals = reduce(torch.stack([value.float() for value in self._sums.values()])).tolist()
        if bad := [name for name, value in zip(self._sums, totals, strict=True) if not math.isfinite(value)]:
            raise ValueError(
                f"between steps {self.since + 1} and {step} these terms are not finite: {', '.join(bad)}; "
                "lower the learning rate, or look at the data of these steps"
            )
        return dict(zip(self._sums, totals, strict=True))

    def flush(self, step: int, reduce: Reduce) -> dict[str, float]:
        """The means a step since the last flush; begins anew."""
        means = {name: total / (step - self.since) for name, total in self.totals(step, reduce).items()}
        self._sums, self.since = {}, step
        return means

    def state(self, step: int, reduce: Reduce) -> dict[str, Any]:
        """What a checkpoint keeps, the same on every rank."""
        return {"since": self.since, "totals": self.totals(step, reduce)}

    def load(self, state: dict[str, Any], keep: bool, device: torch.device) -> None:
        """Go on from a state; of all ranks one alone may `keep` the sums."""
        self.since = state["since"]
        self._sums = {name: torch.tensor(total * keep, device=device) for name, total in state["totals"].items()}
