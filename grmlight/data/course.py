"""Course: a training of several phases, each on pairs of its own, as one epoch of a loader.

The order stays a pure function of (store, seed, step), so resuming costs nothing, and Lightning counts the steps of
all phases together, as its schedule and its checkpoints do.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from grmlight._data_rs import Store, epoch_order
from grmlight.data.loader import Deal, TrainingLoader


@dataclasses.dataclass(frozen=True)
class Leg:
    """One phase.

    Attributes:
        name: its name.
        groups: the store's groups that it trains on, gone through in a new order each time.
        steps: its optimizer steps.
    """

    name: str
    groups: np.ndarray
    steps: int


@dataclasses.dataclass(frozen=True)
class Course:
    """Phases, one after the other.

    Attributes:
        legs: the phases.
    """

    legs: Sequence[Leg]

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(leg.steps for leg in self.legs)

    def start(self, name: str) -> int:
        """Steps before a phase."""
        names = [leg.name for leg in self.legs]
        return sum(leg.steps for leg in self.legs[: names.index(name)])

    def end(self, name: str) -> int:
        """Steps until a phase is over."""
        return self.start(name) + next(leg.steps for leg in self.legs if leg.name == name)

    def at(self, step: int) -> Leg:
        """The phase of a step, counted from 0; after the last step the last phase."""
        return next((leg for leg in self.legs if step < self.end(leg.name)), self.legs[-1])


def shuffled(groups: int, seed: int) -> np.ndarray:
    """A store's groups in an order that only the seed decides, to split them by."""
    return epoch_order(groups, seed, 0)


class CourseLoader(TrainingLoader):
    """A TrainingLoader whose epoch is a whole course.

    Args:
        course: the phases.
        store: the prepared data.
        pairs_per_step: groups of one step.
        options: see `GroupLoader`.
    """

    def __init__(self, course: Course, store: Store, pairs_per_step: int, **options: Any) -> None:
        super().__init__(store, pairs_per_step, **options)
        self.course = course
        self._leg_order = functools.lru_cache(maxsize=1)(self._order_of_leg)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the course."""
        return self.course.steps

    def deals(self) -> Iterator[Deal]:
        """What the packs hold, phase by phase."""
        for step in range(self._steps, self.steps_per_epoch):
            yield from self._own(self._deal(self._groups_at(step)), step)

    def _groups_at(self, step: int) -> np.ndarray:
        leg = self.course.at(step)
        passed, place = divmod(step - self.course.start(leg.name), -(-len(leg.groups) // self.pairs_per_step))
        return self._leg_order(leg.name, passed)[place * self.pairs_per_step : (place + 1) * self.pairs_per_step]

    def _order_of_leg(self, name: str, passed: int) -> np.ndarray:
        """A phase's groups in the order of one pass; every phase and pass has its own."""
        number = [leg.name for leg in self.course.legs].index(name)
        leg = self.course.legs[number]
        return leg.groups[epoch_order(len(leg.groups), self.seed or 0, (number << 32) + self._epoch + passed)]

    def _order_of(self) -> dict[str, Any]:
        phases = [[leg.name, leg.steps, len(leg.groups)] for leg in self.course.legs]
        return super()._order_of() | {"phases": phases}
