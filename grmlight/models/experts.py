"""ExpertsModel: an outer router over tasks, and within each task a dense mixture of low-rank experts (DMoERM).

Notable decisions:

- One frozen backbone serves all: a task model is an adapter with its head, an expert one more adapter on top of it.
- A group is routed as a whole, by the backbone's own hidden state at the end of its first response's prompt.
- Only one pass with gradient is run in training, whatever the phase; the mixture reads frozen experts.
- The model knows the phase that it is in, so what is saved after a phase scores as it did then.

Shape suffixes: T tasks (tokens in `batch`), E experts of all tasks, K experts of the largest task, G groups,
N responses, H hidden size, L scored tokens, B rows, W row width.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from grmlight.data.batch import GroupBatch, send
from grmlight.models import expert_files
from grmlight.models.backbone import BackboneConfig, decoder, enable_checkpointing, language_head
from grmlight.models.causal_model import Packing
from grmlight.models.expert_adapters import Active, Kind, attach
from grmlight.models.expert_config import ExpertsConfig, PhaseName
from grmlight.models.expert_heads import ExpertHeads, Router
from grmlight.models.heads import HeadConfig
from grmlight.models.hidden import HiddenStates, packed_states
from grmlight.models.modes import evaluating
from grmlight.models.outputs import Outputs, Signal
from grmlight.models.padded import padded_states
from grmlight.models.reward_model import RewardModel


@dataclasses.dataclass(frozen=True)
class ExpertsOutputs(Outputs):
    """Outputs of a mixture of experts.

    Attributes:
        task_G: the task that each group was routed to.
        route_logits_GT: the router's logits, where it was asked.
    """

    task_G: Int[Tensor, " G"] | None = None
    route_logits_GT: Float[Tensor, "G T"] | None = None


class ExpertsModel(RewardModel):
    """A reward model of experts; called as a `RewardModel` is. It gives rewards alone, no log-probs.

    Args:
        backbone: the causal LM, with the shape of all adapters in `lora`.
        experts: tasks and experts.
        head: the shape of a task's and an expert's head.
        seed: of random weights.
        packing: "never" pads even if the model could be packed.
        phase: see below.

    Attributes:
        phase: what it is now: "task" (the task models), "experts" (a pair is scored by the expert of the capability
            that it is labeled for, else by the mean of its task's) or "mixture".

    Raises:
        ValueError: as `RewardModel`; no adapters.

    Source: Quan 2024, DMoERM (arXiv 2403.01197).
    """

    head: ExpertHeads  # pyright: ignore[reportIncompatibleVariableOverride] - heads of many kinds
    _first_T: Tensor
    _count_T: Tensor

    def __init__(
        self,
        backbone: BackboneConfig,
        experts: ExpertsConfig,
        head: HeadConfig | None = None,
        seed: int = 0,
        packing: Packing = "auto",
        phase: PhaseName = "mixture",
    ) -> None:
        if backbone.lora is None:
            raise ValueError("experts are adapters on a frozen backbone; set backbone.lora (its defaults: {})")
        super().__init__(dataclasses.replace(backbone, lora=None, frozen=True), head, seed, packing=packing)
        self.backbone_config, self.experts_config = backbone, experts
        self.phase: PhaseName = phase
        hidden_size, counts = language_head(self.lm).weight.shape[-1], experts.counts
        self._switch = attach(self.lm, backbone.lora, len(counts), sum(counts), seed)
        if backbone.gradient_checkpointing:
            enable_checkpointing(self.lm, context_fn=self._switch.remember)
        self.head = ExpertHeads(hidden_size, counts, self.head_config, seed)
        self.router = Router(hidden_size, len(counts), seed) if experts.routing == "classifier" else None
        first_T = torch.tensor([0, *counts], device="cpu").cumsum(0)[:-1]
        self.register_buffer("_first_T", first_T, persistent=False)
        self.register_buffer("_count_T", torch.tensor(counts, device="cpu"), persistent=False)

    def forward(self, batch: GroupBatch, signals: frozenset[Signal] = frozenset()) -> ExpertsOutputs:
        """Rewards of every response in the batch, and how its groups were routed.

        In training groups go where their labels say; otherwise where the router or, if routing is given, their category
        says.

        Raises:
            ValueError: a signal is asked for, a group's category is needed and not known, or as `RewardModel`.
        """
        self.check_signals(signals)
        self._check_length(batch)
        asked = self.router is not None and (self.phase == "task" if self.training else True)
        logits_GT = self._route(batch) if asked else None
        task_G = self._given(batch) if self.training or logits_GT is None else logits_GT.argmax(1)
        if self.phase == "task":
            task_N = task_G[batch.group_N]
            last_NH = self._run(batch, {"task": _one_hot(task_G, self._count_T)}, learning="task").at_last()
            rewards_N = self.head("task", last_NH, task_N)
        elif self.phase == "experts":
            rewards_N = self._labeled(batch, task_G) if self.training else self._by_capability(batch, task_G)
        else:
            rewards_N = self.head("mixtures", self._every_expert(batch, task_G), task_G[batch.group_N])
        rewards_N = (self._touch(rewards_N) - self.reward_shift) / self.reward_scale
        return ExpertsOutputs(rewards_N, task_G=task_G, route_logits_GT=logits_GT)

    def check_signals(self, signals: frozenset[Signal]) -> None:
        """Refuse what this model does not give. Errors: ValueError that names it."""
        if signals:
            raise ValueError(
                f"experts give rewards alone, not {', '.join(sorted(signals))}; drop the penalties that need them"
            )

    def learning(self, phase: PhaseName) -> dict[str, nn.Parameter]:
        """The parameters by name that train in a phase, and in no other."""
        return {name: each for name, each in self.named_parameters() if each.requires_grad and _phase_of(name) == phase}

    def begin(self, phase: PhaseName) -> None:
        """Enter a phase at its first step: experts begin with their task's head."""
        self.phase = phase
        if phase == "experts":
            self.head.copy_task_heads()

    @property
    def scoring_passes(self) -> int:
        """Forwards of the backbone that a response takes at most: the router's, and one an expert."""
        experts = 1 if self.phase == "task" else max(self.experts_config.counts)
        return experts + (self.router is not None)

    def float32_parts(self) -> list[nn.Module]:
        """The router and the heads."""
        return [self.head] if self.router is None else [self.router, self.head]

    def folder_entries(self) -> dict[str, Any]:
        """What `grmlight.json` says of this model."""
        return expert_files.folder_entries(self)

    def blank(self) -> Self:
        """A model of the same shape with random weights, on the CPU."""
        backbone = dataclasses.replace(self.backbone_config, pretrained=False, gradient_checkpointing=False)
        packing: Packing = "auto" if self.packed else "never"
        return type(self)(backbone, self.experts_config, self.head_config, packing=packing, phase=self.phase)

    def save_pretrained(
        self, directory: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Write a folder that `from_pretrained` loads: the causal LM as it was, and beside it experts.safetensors."""
        expert_files.save(self, directory, tokenizer)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str], **options: Any) -> Self:
        """Load what `save_pretrained` wrote.

        Args:
            directory: the folder.
            options: `dtype` and `gradient_checkpointing` of `BackboneConfig`; the rest goes to the constructor.

        Raises:
            ValueError: no such model lies there, or its tensors do not fit; names them.
        """
        return expert_files.load(cls, directory, options)

    def _route(self, batch: GroupBatch) -> Float[Tensor, "G T"]:
        """The router's logits, from the backbone without any adapter."""
        assert self.router is not None
        with torch.no_grad(), evaluating(self.lm):
            states = self._run(batch, {})
            prompt_GH = _at_prompt_end(states, batch)
        return self.router(prompt_GH)

    def _given(self, batch: GroupBatch) -> Int[Tensor, " G"]:
        if batch.task_G is None:
            raise ValueError(
                "the pairs' categories are needed to route them, and the batch carries none; train and evaluate with "
                "grmlight.ExpertsModule, or train with routing: classifier to score text alone"
            )
        # Training pairs were checked before the first step, without waiting for the device.
        if not self.training and (unknown_C := batch.task_G[batch.group_C] < 0).any():
            rows = ", ".join(str(row) for row in batch.row_C[unknown_C].tolist()[:5])
            raise ValueError(f"rows {rows}: their category is none of the tasks {', '.join(self.experts_config.tasks)}")
        return batch.task_G

    def _labeled(self, batch: GroupBatch, task_G: Int[Tensor, " G"]) -> Float[Tensor, " N"]:
        """Each pair by the expert of the capability that it was labeled for."""
        assert batch.capability_G is not None
        expert_G = self._first_T[task_G] + batch.capability_G
        codes: dict[Kind, Tensor] = {"task": _one_hot(task_G, self._count_T)}
        codes["expert"] = nn.functional.one_hot(expert_G, sum(self.experts_config.counts)).float()
        last_NH = self._run(batch, codes, learning="expert").at_last()
        return self.head("experts", last_NH, expert_G[batch.group_N])

    @torch.no_grad()
    def _every_expert(self, batch: GroupBatch, task_G: Int[Tensor, " G"]) -> Float[Tensor, "N K H"]:
        """The last hidden state under each expert of a group's task; of a task with fewer, its task model's."""
        counts, states = self.experts_config.counts, []
        with evaluating(self.lm):
            for place in range(max(counts)):
                owners = torch.tensor([task for task, count in enumerate(counts) if count > place])
                owners = send(owners, task_G.device)
                codes: dict[Kind, Tensor] = {"task": _one_hot(task_G, self._count_T)}
                codes["expert"] = codes["task"].index_select(1, owners)
                states.append(self._run(batch, codes, which=self._first_T[owners] + place).at_last())
        return torch.stack(states, dim=1)

    def _by_capability(self, batch: GroupBatch, task_G: Int[Tensor, " G"]) -> Float[Tensor, " N"]:
        """Each pair by the expert it is labeled for, and pairs without such a label by the mean of their task's."""
        hidden_NKH, task_N = self._every_expert(batch, task_G), task_G[batch.group_N]
        count_N = self._count_T[task_N]
        places = torch.arange(hidden_NKH.shape[1], device=task_N.device)
        experts_NK = self._first_T[task_N][:, None] + torch.minimum(places, count_N[:, None] - 1)
        rewards = [self.head("experts", hidden_NKH[:, k], experts_NK[:, k]) for k in range(len(places))]
        weight_NK = (places < count_N[:, None]) / count_N[:, None]
        if batch.capability_G is not None and batch.task_G is not None:
            # A label is of the pair's own task: where it was routed to another one, there is no such expert.
            own_G = (batch.task_G == task_G) & (batch.capability_G >= 0)
            one_NK = (places == batch.capability_G[batch.group_N][:, None]).float()
            weight_NK = torch.where(own_G[batch.group_N][:, None], one_NK, weight_NK)
        return (torch.stack(rewards, dim=1) * weight_NK).sum(1)

    def _run(
        self,
        batch: GroupBatch,
        codes: dict[Kind, Tensor],
        which: Tensor | None = None,
        learning: Kind | None = None,
    ) -> HiddenStates:
        """Hidden states under each group's adapters.

        Args:
            batch: the groups.
            codes: for each kind of adapter the groups' rows of 0 and 1.
            which: the experts that their codes mean.
            learning: the kind that gets a gradient.
        """
        group_P = send(_group_of_tokens(batch), batch.last_N.device)

        def place(token_BW: Tensor) -> None:
            chosen: dict[Kind, Tensor] = {kind: code_GA[group_P[token_BW]] for kind, code_GA in codes.items()}
            self._switch.active = Active(chosen, {"task": None, "expert": which}, learning) if codes else None

        try:
            if not self.packed:
                return padded_states(decoder(self.lm), batch, self.bucketed, place)
            place(torch.arange(len(batch.input_ids_T), device=group_P.device)[None])
            return packed_states(decoder(self.lm), batch)
        finally:
            self._switch.active = None

    def _touch(self, rewards_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Give what does not train now a gradient of 0 where DDP waits for one; the optimizer never sees it."""
        alone = not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1
        if alone or not (self.training and torch.is_grad_enabled()):
            return rewards_N
        learning = self.learning(self.phase)
        idle = [each for name, each in self.named_parameters() if each.requires_grad and name not in learning]
        idle = [each for each in idle if not isinstance(each, DTensor)]
        return rewards_N + 0.0 * torch.stack([each.flatten()[0] for each in idle]).sum() if idle else rewards_N


def _phase_of(name: str) -> PhaseName:
    """The phase in which a parameter of this name trains."""
    if name.startswith("head.mixtures."):
        return "mixture"
    return "experts" if name.startswith("head.experts.") or ".adapters.expert." in name else "task"


def _one_hot(index_G: Int[Tensor, " G"], like: Tensor) -> Float[Tensor, "G T"]:
    return nn.functional.one_hot(index_G, len(like)).float()


def _group_of_tokens(batch: GroupBatch) -> Int[Tensor, " P"]:
    """The group of each token of the pack, on the CPU: a group is a prompt's segment and those after it."""
    table_S3 = batch.layout.table_S3
    group_S = (table_S3[:, 2] < 0).cumsum(0) - 1
    return torch.repeat_interleave(group_S, table_S3[:, 1] - table_S3[:, 0])


def _at_prompt_end(states: HiddenStates, batch: GroupBatch) -> Float[Tensor, "G H"]:
    """The state that predicts the first scored token of each group's first response: what precedes it is the prompt.

    It does not depend on the other responses, as the end of the shared tokens would. A response without scored tokens
    is a single token without a prompt, which stands for itself.
    """
    first_G = torch.searchsorted(batch.group_N, torch.arange(batch.groups, device=batch.group_N.device))
    last_GH = states.at_last().index_select(0, first_G)
    if not len(batch.response_L):
        return last_GH
    place_G = torch.searchsorted(batch.response_L, first_G).clamp(max=len(batch.response_L) - 1)
    scored_G = batch.response_L[place_G] == first_G
    return torch.where(scored_G[:, None], states.at_source(place_G), last_GH)
