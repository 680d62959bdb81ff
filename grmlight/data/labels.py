"""Which task and capability each group of a store belongs to, as numbers: what experts are routed and trained by.

A task is a pair's `category`, which the store keeps; the capability that a pair was labeled for is the column
`capability` of its source.

Shape suffixes: G groups, of a whole store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from grmlight._data_rs import Store
from grmlight.data.source import read_column

NONE = -1
"""The number of a task or capability that is not known."""

CAPABILITY = "capability"
"""The column."""


@dataclasses.dataclass(frozen=True)
class GroupLabels:
    """Tasks and capabilities of a store's groups.

    Attributes:
        task_G: the number of the group's task, or `NONE`.
        capability_G: the number of its capability within that task, or `NONE`.
        unseen: categories that are no task, with their number of groups.
    """

    task_G: np.ndarray
    capability_G: np.ndarray
    unseen: dict[str, int]

    def describe_unseen(self) -> str:
        """What to say of categories that are no task; empty if there are none."""
        if not self.unseen:
            return ""
        found = ", ".join(f"{category!r} ({count})" for category, count in sorted(self.unseen.items()))
        return f"categories that the router never saw, routed as it thinks best: {found}"

    def of(self, groups: np.ndarray) -> dict[str, np.ndarray]:
        """Those of these groups, by the names that they have in a batch."""
        return {"task_G": self.task_G[groups], "capability_G": self.capability_G[groups]}


def group_labels(store: Store, source: str, tasks: Mapping[str, Sequence[str]], strict: bool) -> GroupLabels:
    """Look up the labels of a store's groups.

    Args:
        store: the store.
        source: what it was prepared from.
        tasks: the names of each task's capabilities; their order gives the numbers.
        strict: refuse what is no task and no capability of its task, instead of giving it `NONE`.

    Errors: ValueError that names the first such row.
    """
    rows, labeled = store.rows(), read_column(source, CAPABILITY)
    numbers = {task: number for number, task in enumerate(tasks)}
    task_G, capability_G = (np.full(len(rows), NONE, dtype=np.int64) for _ in range(2))
    unseen: dict[str, int] = {}
    for group, row in enumerate(rows):
        category, capability = row["category"] or "", labeled.get(row["row"])
        if category not in numbers:
            unseen[category] = unseen.get(category, 0) + 1
            if strict:
                raise ValueError(f"{source}: row {row['row']} has category {category!r}, {_none_of('task', tasks)}")
            continue
        task_G[group] = numbers[category]
        if capability is not None and capability in tasks[category]:
            capability_G[group] = list(tasks[category]).index(capability)
        elif capability is not None and strict:
            known = _none_of(f"capability of task {category!r}", tasks[category])
            raise ValueError(f"{source}: row {row['row']} has capability {capability!r}, {known}")
    return GroupLabels(task_G, capability_G, unseen)


def _none_of(what: str, names: Mapping[str, Sequence[str]] | Sequence[str]) -> str:
    return f"which is no {what} ({', '.join(names)}); name it in model.init_args.tasks, or leave such rows out"
