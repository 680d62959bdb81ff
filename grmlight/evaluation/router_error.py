"""How often a router is wrong, and how many groups no router could be right about."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from grmlight.data.batch import GroupBatch

FIGURES = ("router_error", "unseen_categories")
"""Names of the figures."""


class RouterError(Metric):
    """The share of groups of a known category that were routed to another task, and the groups of unknown ones.

    Batches that carry no categories count nowhere; without any group of a known category there is no share.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, outputs: object, batch: GroupBatch) -> None:
        """Add the groups of a batch; `outputs.task_G` says where they were routed."""
        routed_G: Tensor | None = getattr(outputs, "task_G", None)
        if routed_G is None or batch.task_G is None:
            return
        known_G = (batch.task_G >= 0) * batch.count_G
        wrong_G = (routed_G != batch.task_G) * known_G
        self.sums += torch.stack([wrong_G.sum(), known_G.sum(), (batch.count_G - known_G).sum()])

    def compute(self) -> dict[str, Tensor]:
        """The figures by name."""
        wrong, known, unseen = self.sums
        return ({"router_error": wrong / known} if known else {}) | {"unseen_categories": unseen}
