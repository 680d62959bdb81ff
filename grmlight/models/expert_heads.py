"""The heads of a mixture of experts: of each task, of each expert, of each task's mixture, and the router's.

Shape suffixes: G groups, N responses, T tasks, H hidden size, K experts of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from grmlight.models.heads import HeadConfig, InFloat32, RewardHead, linear

HeadKind = Literal["task", "experts", "mixtures"]


class Router(InFloat32):
    """A linear classifier of tasks on the hidden state at a prompt's end. It gives logits; their softmax is the loss's.

    Args:
        hidden_size: size of the hidden states.
        tasks: number of tasks.
        seed: of the initial parameters.
    """

    def __init__(self, hidden_size: int, tasks: int, seed: int = 0) -> None:
        super().__init__()
        self.score = linear(hidden_size, tasks, torch.Generator().manual_seed(seed))

    def forward(self, prompt_GH: Float[Tensor, "G H"]) -> Float[Tensor, "G T"]:
        """A float32 logit for each task."""
        with torch.autocast(prompt_GH.device.type, enabled=False):
            return self.score(prompt_GH.float())


class Mixture(InFloat32):
    """An MLP on the experts' hidden states laid side by side: K H to H, PReLU, to 1. Source: Quan 2024 (2403.01197).

    Args:
        hidden_size: size of the hidden states.
        experts: K.
        generator: of the initial parameters.
    """

    def __init__(self, hidden_size: int, experts: int, generator: torch.Generator) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            linear(experts * hidden_size, hidden_size, generator),
            nn.PReLU(device="cpu", dtype=torch.float32),
            linear(hidden_size, 1, generator),
        )

    def forward(self, hidden_NKH: Float[Tensor, "N K H"]) -> Float[Tensor, " N"]:
        """One float32 reward for each response."""
        with torch.autocast(hidden_NKH.device.type, enabled=False):
            return self.mix(hidden_NKH.float().flatten(1)).squeeze(-1)


class ExpertHeads(InFloat32):
    """All heads but the router's. Each is run on every response, and the right one's reward taken: heads cost little.

    Args:
        hidden_size: size of the hidden states.
        experts: experts of each task.
        config: the shape of a task's and an expert's head.
        seed: of the initial parameters.
    """

    def __init__(self, hidden_size: int, experts: Sequence[int], config: HeadConfig, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.task = nn.ModuleList(RewardHead(hidden_size, config, seed) for _ in experts)
        self.experts = nn.ModuleList(RewardHead(hidden_size, config, seed) for _ in range(sum(experts)))
        self.mixtures = nn.ModuleList(Mixture(hidden_size, count, generator) for count in experts)
        self.counts = tuple(experts)

    def forward(
        self, kind: HeadKind, hidden: Float[Tensor, "N H"] | Float[Tensor, "N K H"], which_N: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """The reward of each response by its own head.

        Args:
            kind: of a task, an expert (by its number among all tasks'), or a task's mixture.
            hidden: a hidden state a response; for mixtures one an expert, filled up to the largest task's number.
            which_N: the number of each response's head.
        """
        heads = self.get_submodule(kind)
        assert isinstance(heads, nn.ModuleList)
        if kind == "mixtures":
            values = [head(hidden[:, :count]) for head, count in zip(heads, self.counts, strict=True)]
        else:
            values = [head(hidden) for head in heads]
        return torch.stack(values, dim=1).gather(1, which_N[:, None]).squeeze(1)

    @torch.no_grad()
    def copy_task_heads(self) -> None:
        """Let each expert's head begin as its task's."""
        owners = [task for task, count in enumerate(self.counts) for _ in range(count)]
        for owner, expert in zip(owners, self.experts, strict=True):
            for target, source in zip(expert.parameters(), self.task[owner].parameters(), strict=True):
                target.copy_(source)
