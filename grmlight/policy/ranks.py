"""The ranks of a run, where all of them need to know something."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from torch import Tensor

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class AllRanks:
    """All data-parallel ranks; without a trainer there is one.

    Attributes:
        trainer: of the run.
    """

    trainer: Trainer | None = None

    @property
    def count(self) -> int:
        """Their number."""
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def rank(self) -> int:
        """This one."""
        return 0 if self.trainer is None else self.trainer.global_rank

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor of the CPU over all ranks."""
        if self.trainer is None or self.count == 1:
            return tensor
        strategy = self.trainer.strategy
        return strategy.reduce(tensor.to(strategy.root_device), reduce_op="sum").cpu()

    def gather(self, value: _Result) -> list[_Result]:
        """Everybody's value, in the order of ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def from_first(self, value: _Result) -> _Result:
        """The first rank's value."""
        return value if self.trainer is None or self.count == 1 else self.trainer.strategy.broadcast(value)

    def together(self, work: Callable[[], _Result], failures: tuple[type[Exception], ...] = (ValueError,)) -> _Result:
        """Do something that may fail on one rank: then it fails on all, and none waits for another.

        Errors: ValueError with the text of the first rank that failed.
        """
        results: list[_Result] = []
        reason = ""
        try:
            results.append(work())
        except failures as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            reason = kind + " ".join(str(error).split())[:500]
        if found := [each for each in self.gather(reason) if each]:
            raise ValueError(found[0])
        return results[0]
