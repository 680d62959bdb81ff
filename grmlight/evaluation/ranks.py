"""What every rank has found, together."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

T = TypeVar("T")


def from_all_ranks(found: list[T]) -> list[T]:
    """The lists of all ranks, joined in the order of ranks. Call it on every rank."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return found
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, found)
    return [each for part in gathered for each in part]
