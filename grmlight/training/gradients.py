"""Gradients of a step, without waiting for the device. Sharded ones (FSDP2) are taken as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Float[Tensor, ""]:
    """The Euclidean norm of all gradients together, of all ranks' shards too."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip_gradients(parameters: Sequence[nn.Parameter], norm: Float[Tensor, ""], limit: float) -> None:
    """Scale all gradients so that their norm, which is given, is at most `limit`."""
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def all_finite(parameters: Iterable[nn.Parameter]) -> Bool[Tensor, ""]:
    """Whether all weights that learn are finite, as far as this rank has them."""
    learning = [p.detach() for p in parameters if p.requires_grad]
    local = [p.to_local() if isinstance(p, DTensor) else p for p in learning]
    return nn.utils.get_total_norm([p for p in local if p.numel()], norm_type=torch.inf).isfinite()
