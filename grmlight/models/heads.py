"""The reward head: from the last token's hidden state to one number.

Notable decisions:

- Always float32: its input is cast, autocast is off inside, and `.to(dtype)` moves it without changing its dtype.
- Parameter names are those of the GRM authors' released models (`summary.0.weight`, ...; linear: `summary.weight`).
- Parameters are drawn from a generator of their own, so they depend on the seed alone, not on the backbone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Shape of the reward head.

    Attributes:
        kind: "linear", or "mlp": the paper's default.
        layers: (linear, ReLU) blocks before the final linear layer of an MLP.
        width: their width.
        dropout: on the hidden state, in training.
    """

    kind: Literal["linear", "mlp"] = "mlp"
    layers: int = 1
    width: int = 1024
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "mlp"):
            raise ValueError(f"head kind must be 'linear' or 'mlp', got {self.kind!r}")
        if self.layers < 1 or self.width < 1:
            raise ValueError(f"head layers and width must be at least 1, got {self.layers} and {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"head dropout must be in [0, 1), got {self.dropout}")


class InFloat32(nn.Module):
    """A module whose parameters keep their dtype, whatever `.to(dtype)` and the like ask for."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_dtype(tensor: Tensor) -> Any:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(keep_dtype, recurse)


class RewardHead(InFloat32):
    """Dropout, then a linear layer or an MLP with one output. Source: GRM (arXiv 2406.10216), released code.

    Args:
        hidden_size: size of the backbone's hidden states.
        config: the head's shape.
        seed: of its initial parameters, which follow torch's default for linear layers.
    """

    def __init__(self, hidden_size: int, config: HeadConfig, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.dropout = nn.Dropout(config.dropout)
        if config.kind == "linear":
            self.summary: nn.Module = linear(hidden_size, 1, generator)
            return
        blocks: list[nn.Module] = []
        for layer in range(config.layers):
            blocks += [linear(config.width if layer else hidden_size, config.width, generator), nn.ReLU()]
        self.summary = nn.Sequential(*blocks, linear(config.width, 1, generator))

    def forward(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, " N"]:
        """One float32 reward for each hidden state."""
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return self.summary(self.dropout(hidden_NH.float())).squeeze(-1)


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's default bounds, drawn from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, device="cpu", dtype=torch.float32)
    assert isinstance(layer, nn.Linear)
    bound = inputs**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
