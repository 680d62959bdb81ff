"""Low-rank adapters of many tasks and experts on one frozen backbone, chosen for each token in one forward.

Notable decisions:

- The adapters of all tasks are one tensor, and those of all experts another: whatever tasks a pack holds, every rank
  runs the same layers and every tensor gets a gradient, as DDP and FSDP2 demand.
- An adapter that does not apply to a token is multiplied by 0, so packs of mixed tasks need no cutting.
- A layer reads which adapters apply from a `Switch`; recomputed activations find it as it was.

Shape suffixes: B rows, W row width, A adapters of a kind, R rank, I inputs, O outputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from grmlight.models.lora import LoraOptions, adaptable

Kind = Literal["task", "expert"]


@dataclasses.dataclass(frozen=True)
class Active:
    """Which adapters apply to each token of a forward.

    Attributes:
        codes: for each kind that applies, [B, W, A']: 1 for the token's adapter, 0 for the others.
        which: for each kind the A' adapters that the codes mean; None for all.
        learning: the kind that gets a gradient, and dropout on its input.
    """

    codes: dict[Kind, Float[Tensor, "B W a"]]
    which: dict[Kind, Tensor | None]
    learning: Kind | None


class Switch:
    """Says which adapters apply now; None for none: the backbone alone."""

    def __init__(self) -> None:
        self.active: Active | None = None

    @contextlib.contextmanager
    def using(self, active: Active | None) -> Iterator[None]:
        """Apply these for a while."""
        before, self.active = self.active, active
        try:
            yield
        finally:
            self.active = before

    def remember(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The `context_fn` of activation checkpointing: what applies in forward applies when it is run again."""
        return contextlib.nullcontext(), self.using(self.active)


class LowRank(nn.Module):
    """A number of low-rank maps, one for each token: `scale * up(down(x))`, 0 at the start.

    Args:
        adapters: their number.
        inputs: size of the input.
        outputs: size of the output.
        options: rank, scale and dropout.
        generator: of the initial weights, which follow peft's: `down` uniform, `up` zero.
    """

    def __init__(
        self, adapters: int, inputs: int, outputs: int, options: LoraOptions, generator: torch.Generator
    ) -> None:
        super().__init__()
        like: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        self.down_ARI = nn.Parameter(torch.empty(adapters, options.r, inputs, **like))
        self.up_ARO = nn.Parameter(torch.zeros(adapters, options.r, outputs, **like))
        with torch.no_grad():
            self.down_ARI.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        self.scale, self.dropout = options.alpha / options.r, options.dropout

    def forward(
        self, x_BWI: Float[Tensor, "B W I"], code_BWA: Float[Tensor, "B W a"], which: Tensor | None, learn: bool
    ) -> Float[Tensor, "B W O"]:
        """The map of each token's adapter; of the adapters `which` the codes mean."""
        down_ARI, up_ARO = (each if learn else each.detach() for each in (self.down_ARI, self.up_ARO))
        if which is not None:
            down_ARI, up_ARO = down_ARI.index_select(0, which), up_ARO.index_select(0, which)
        x_BWI = F.dropout(x_BWI.to(down_ARI.dtype), self.dropout, training=self.training and learn)
        inner = F.linear(x_BWI, down_ARI.flatten(0, 1)).unflatten(-1, down_ARI.shape[:2])
        inner = inner * code_BWA[..., None].to(inner.dtype)
        return self.scale * (inner.flatten(-2) @ up_ARO.flatten(0, 1))


class Adapters(nn.Module):
    """What is added to the output of one linear layer: the token's task's adapter, and its expert's."""

    def __init__(self, switch: Switch, task: LowRank, expert: LowRank, name: str) -> None:
        super().__init__()
        self.switch, self.task, self.expert, self.name = switch, task, expert, name

    def forward(self, x_BWI: Float[Tensor, "B W I"], output: Tensor) -> Tensor:
        """The layer's output with what applies added to it.

        Errors: ValueError if the layer does not see the tokens as they lie in the pack.
        """
        if (active := self.switch.active) is None:
            return output
        for kind, code_BWA in active.codes.items():
            if code_BWA.shape[:-1] != x_BWI.shape[:-1]:
                raise ValueError(
                    f"lora.targets: {self.name} sees other rows than the model's input, so no expert can be chosen for "
                    "them; name other layers"
                )
            adapter: LowRank = getattr(self, kind)
            output = output + adapter(x_BWI, code_BWA, active.which[kind], active.learning == kind).to(output.dtype)
        return output


def attach(lm: PreTrainedModel, options: LoraOptions, tasks: int, experts: int, seed: int) -> Switch:
    """Give each target layer of a causal LM its adapters, as its child `adapters`.

    Args:
        lm: the model; its own parameters keep their names.
        options: shape of every adapter.
        tasks: number of tasks.
        experts: number of experts of all tasks.
        seed: of the weights.

    Errors: ValueError for targets that the model does not have.
    """
    switch, generator = Switch(), torch.Generator().manual_seed(seed)
    for name, layer in adaptable(lm, options.targets).items():
        outputs, inputs = layer.weight.shape if isinstance(layer, nn.Linear) else reversed(layer.weight.shape)
        task, expert = (LowRank(count, inputs, outputs, options, generator) for count in (tasks, experts))
        layer.add_module("adapters", Adapters(switch, task, expert, name))
        layer.register_forward_hook(_add)
    return switch


def _add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return layer.adapters(inputs[0], output)
