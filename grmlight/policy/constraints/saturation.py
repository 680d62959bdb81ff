"""Notices multipliers that have nowhere left to go, and thresholds that no policy seems to meet."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

_ROUNDING = 1e-9
"""A miss below it is none."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """When to warn.

    Attributes:
        bound: |s| from which on a multiplier counts as saturated.
        updates: how many updates in a row it must be, or the threshold be missed, before that is said.
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
        self._open = True

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
        finding = "out of reach" if self._stays(self._violations) else "saturated"
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

    def missed(self, squashed: float, equal: bool) -> str | None:
        """What to say, once, of a threshold that was never met, neither in the last updates nor before.

        The mean miss of the last ones must exceed two standard errors and not shrink. One that was met once is swung
        around, and is `unmet`'s matter; a saturated multiplier is `watch`'s.

        Args:
            squashed: s.
            equal: whether above the threshold is a miss, too; it is met where it is passed.
        """
        updates, slacks = self.patience.updates, self._slacks
        if slacks[-1] == 0 or (slacks[0] * slacks[-1] < 0 if equal else slacks[-1] > 0):
            self._open = False
        if not self._open or len(slacks) < updates or abs(squashed) >= self.patience.bound:
            return None
        violations = [abs(slack) for slack in slacks]
        violation, error = statistics.fmean(violations), statistics.stdev(violations) / math.sqrt(updates)
        if violation <= max(2 * error, _ROUNDING) or not self._stays(violations):
            return None
        self._open = False
        return (
            f"the threshold of reward {self.name!r} was never met, and in the last {updates} updates the reward came "
            f"no nearer: it is missed by {violation:.4g} (standard error {error:.2g}), with s = {squashed:.3f}; train "
            "longer, raise multipliers.lr, or choose another threshold"
        )

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

    def _stays(self, violations: Sequence[float]) -> bool:
        """Whether they stay what they are; a tenth less in half of the time is on its way to the threshold."""
        half = self.patience.updates // 2
        first, last = sum(violations[:half]), sum(violations[-half:])
        return last > 0 and last >= 0.9 * first

    def state_dict(self) -> dict[str, Any]:
        """What was seen and said."""
        return {
            "violations": list(self._violations),
            "told": list(self._told),
            "slacks": list(self._slacks),
            "open": self._open,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._violations = [float(each) for each in state["violations"]]
        self._told = [str(each) for each in state["told"]]
        self._slacks = [float(each) for each in state["slacks"]]
        self._open = bool(state["open"])
