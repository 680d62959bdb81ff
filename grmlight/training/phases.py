"""The phases in which a mixture of experts trains: how long, and on which pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from grmlight.data.course import Course, Leg, shuffled
from grmlight.data.labels import NONE, GroupLabels
from grmlight.models.expert_config import PHASES, PhaseName


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        epochs: passes over its pairs.
        steps: optimizer steps instead of passes.
        rate: factor of the optimizer's learning rate. Warm-up and schedule begin anew in each phase.
    """

    epochs: int = 1
    steps: int | None = None
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.steps is not None and self.steps < 1) or not self.rate > 0:
            raise ValueError(f"phases: epochs, steps and rate must be positive, got {dataclasses.astuple(self)}")


@dataclasses.dataclass(frozen=True)
class Phases:
    """All phases, and how pairs without a capability are shared out to the first and the last.

    Attributes:
        task: task models (and the router), on a share of each task's pairs without a capability.
        experts: experts, on the pairs with one.
        mixture: the mixtures, on the rest.
        task_share: that share; the paper's is 0.6.
    """

    task: Phase = dataclasses.field(default_factory=Phase)
    experts: Phase = dataclasses.field(default_factory=Phase)
    mixture: Phase = dataclasses.field(default_factory=Phase)
    task_share: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.task_share < 1:
            raise ValueError(f"phases: task_share must lie between 0 and 1, got {self.task_share}")

    def named(self, name: PhaseName) -> Phase:
        """A phase by its name."""
        return getattr(self, name)


def make_course(
    phases: Phases, labels: GroupLabels, tasks: Mapping[str, Sequence[str]], pairs_per_step: int, seed: int
) -> Course:
    """The course of a training.

    Args:
        phases: how long each phase is.
        labels: of the training pairs.
        tasks: the names of each task's capabilities.
        pairs_per_step: groups of one step.
        seed: of the split between the first and the last phase.

    Errors: ValueError if a task or an expert has no pair to learn from.
    """
    split = _split(labels, len(tasks), phases.task_share, seed)
    _check_all_learn(labels, tasks, split)
    legs = []
    for name in PHASES:
        phase, groups = phases.named(name), split[name]
        legs.append(Leg(name, groups, phase.steps or phase.epochs * -(-len(groups) // pairs_per_step)))
    return Course(legs)


def _split(labels: GroupLabels, tasks: int, share: float, seed: int) -> dict[PhaseName, np.ndarray]:
    order = shuffled(len(labels.task_G), seed)
    first, last = [], []
    for task in range(tasks):
        own = order[(labels.task_G[order] == task) & (labels.capability_G[order] == NONE)]
        cut = round(share * len(own))
        first.append(own[:cut])
        last.append(own[cut:])
    labeled = np.flatnonzero(labels.capability_G != NONE)
    return {"task": np.sort(np.concatenate(first)), "experts": labeled, "mixture": np.sort(np.concatenate(last))}


def _check_all_learn(
    labels: GroupLabels, tasks: Mapping[str, Sequence[str]], split: Mapping[PhaseName, np.ndarray]
) -> None:
    for number, (task, capabilities) in enumerate(tasks.items()):
        for name in ("task", "mixture"):
            if not (labels.task_G[split[name]] == number).any():
                raise ValueError(
                    f"phase {name!r}: task {task!r} has no pair without a capability to learn from; add some, or take "
                    "it out of model.init_args.tasks"
                )
        found = labels.capability_G[labels.task_G == number]
        if absent := [each for place, each in enumerate(capabilities) if place not in found]:
            raise ValueError(
                f"task {task!r} has no pair labeled for {', '.join(absent)}; label some with `grmlight label`, or take "
                "it out of model.init_args.tasks"
            )
