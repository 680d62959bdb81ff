"""Notices multipliers that have nowhere left to go, and thresholds that no policy seems to meet."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any


@dataclasses.dataclass(frozen=True)
class Patience:
    """When to warn.

    Attributes:
        bound: |s| from which on a multiplier counts as saturated.
        updates: how many updates in a row it must be, before that is said.
    """

    bound: float = 0.98
    updates: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.bound < 1 or self.updates < 2:
            raise ValueError(f"saturation: bound must lie between 0 and 1, updates be at least 2, got {self}")


class Saturation:
    """Watches one constraint.

    Args:
        name: the reward's.
        patience: when to warn.
    """

    def __init__(self, name: str, patience: Patience) -> None:
        self.name = name
        self.patience = patience
        self._violations: list[float] = []
        self._told: list[str] = []
        self._slacks: list[float] = []

    def watch(self, squashed: float, violation: float, threshold: float, value: float) -> str | None:
        """What to warn of, if anything; each thing once for each time that the multiplier gets there.

        Args:
            squashed: s.
            violation: by how much the constraint is violated, at least 0.
            threshold: what was asked.
            value: what the batch had.
        """
        if abs(squashed) < self.patience.bound:
            self._violations, self._told = [], []
            return None
        self._violations.append(violation)
        if len(self._violations) < self.patience.updates:
            return None
        finding = "out of reach" if self._stuck() else "saturated"
        self._violations = []
        if finding in self._told or self._told == ["out of reach"]:
            return None
        self._told.append(finding)
        updates = self.patience.updates
        seen = f"the multiplier of reward {self.name!r} is saturated (s = {squashed:.3f}) for {updates} updates"
        where = f"the reward is {value:.4g}, its threshold {threshold:g}"
        if finding == "saturated":
            return f"{seen}; {where}"
        return (
            f"{seen}, and its threshold seems out of reach: {where}; choose one that runs have met (grmlight "
            "proxy-points), give the reward larger units so that it pulls harder, or see whether constraints conflict"
        )

    def note(self, slack: float) -> None:
        """Remember by how much an update's mean reward was above (or, in `at_most`, below) its threshold."""
        self._slacks = [*self._slacks, slack][-self.patience.updates :]

    def unmet(self, equal: bool) -> str | None:
        """What to say at the end of a constraint that is violated by more than two standard errors; None if not."""
        count = len(self._slacks)
        if count < 2:
            return None
        slack, error = statistics.fmean(self._slacks), statistics.stdev(self._slacks) / math.sqrt(count)
        if (abs(slack) if equal else -slack) <= 2 * error:
            return None
        return (
            f"the constraint of reward {self.name!r} is violated at the end of training: by {abs(slack):.4g} (standard "
            f"error {error:.2g}) on the mean of the last {count} updates; train longer, or choose another threshold"
        )

    def _stuck(self) -> bool:
        """Whether the violation stays what it is; a tenth less in half of the time is on its way to the threshold."""
        half = self.patience.updates // 2
        first, last = sum(self._violations[:half]), sum(self._violations[-half:])
        return last > 0 and last >= 0.9 * first

    def state_dict(self) -> dict[str, Any]:
        """What was seen and said since it saturated."""
        return {"violations": list(self._violations), "told": list(self._told), "slacks": list(self._slacks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._violations = [float(each) for each in state["violations"]]
        self._told = [str(each) for each in state["told"]]
        self._slacks = [float(each) for each in state["slacks"]]
