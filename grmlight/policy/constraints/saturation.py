"""Notices multipliers that have nowhere left to go, and thresholds that no policy seems to meet."""

from __future__ import annotations

import dataclasses
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

    def watch(self, squashed: float, violation: float, threshold: float, value: float) -> str | None:
        """What to warn of, if anything; once for each time that the multiplier gets there.

        Args:
            squashed: s.
            violation: by how much the constraint is violated, at least 0.
            threshold: what was asked.
            value: what the batch had.
        """
        if abs(squashed) < self.patience.bound:
            self._violations = []
            return None
        self._violations.append(violation)
        if len(self._violations) != self.patience.updates:
            return None
        half = self.patience.updates // 2
        first, last = sum(self._violations[:half]) / half, sum(self._violations[-half:]) / half
        told = f"the multiplier of reward {self.name!r} has been saturated (s = {squashed:.3f}) for {self.patience.updates} updates"
        # A tenth less in half of the time is on its way to the threshold.
        if last > 0 and last >= 0.9 * first:
            return (
                f"{told}, and its threshold {threshold:g} seems out of reach: the reward stays at {value:.4g}; "
                "choose a threshold that runs have met (grmlight proxy-points), or look whether two constraints conflict"
            )
        return f"{told}: nothing is left of the task's weight, or it pulls the other way; the reward is {value:.4g}, its threshold {threshold:g}"

    def state_dict(self) -> dict[str, Any]:
        """What was seen since it saturated."""
        return {"violations": list(self._violations)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._violations = [float(each) for each in state["violations"]]
