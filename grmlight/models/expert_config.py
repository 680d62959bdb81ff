"""What a mixture of experts is made of, and the phases of its training."""

from __future__ import annotations

import dataclasses
from typing import Literal

PhaseName = Literal["task", "experts", "mixture"]
PHASES: tuple[PhaseName, ...] = ("task", "experts", "mixture")
"""In the order of training."""

Routing = Literal["classifier", "given"]


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """Tasks and experts.

    Attributes:
        tasks: each task (a category of the data) with the capabilities that it has experts for.
        routing: "classifier" learns to tell tasks by their prompts; "given" takes each pair's category.
    """

    tasks: dict[str, list[str]]
    routing: Routing = "classifier"

    def __post_init__(self) -> None:
        if self.routing not in ("classifier", "given"):
            raise ValueError(f"routing must be 'classifier' or 'given', got {self.routing!r}")
        if not self.tasks:
            raise ValueError("tasks: name at least one task with its capabilities, as in {chat: [clarity, empathy]}")
        for task, capabilities in self.tasks.items():
            if not capabilities or len(set(capabilities)) < len(capabilities):
                raise ValueError(f"tasks: {task!r} needs one or more different capabilities, got {capabilities}")

    @property
    def counts(self) -> list[int]:
        """Experts of each task."""
        return [len(capabilities) for capabilities in self.tasks.values()]
