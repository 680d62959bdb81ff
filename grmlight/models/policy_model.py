"""PolicyModel: a causal LM that is optimized against a reward.

Notable decisions:

- Its reward is the implicit one of direct alignment, log pi(response) - log reference(response) in nats, so that what
  measures reward models measures policies too.
- Log-probs are those of the response's scored tokens, summed, and token by token.
- Its critic, if it has one, reads the policy's own hidden states; or those of adapters or layers of its own. It is no
  part of a saved policy.
- Saved policies are plain Hugging Face folders with their tokenizer; a merged copy where there are adapters.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Collection, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase

from grmlight.data.batch import GroupBatch
from grmlight.models import checkpoint
from grmlight.models.backbone import (
    BackboneConfig,
    decoder,
    enable_checkpointing,
    hidden_size,
)
from grmlight.models.causal_model import CausalModel, Packing
from grmlight.models.decoding import Decoded, Pick, decode
from grmlight.models.heads import HeadConfig, InFloat32, RewardHead
from grmlight.models.hidden import HiddenStates, packed_states
from grmlight.models.lora import adapter_on, adapters_off, add_adapters, same_adapter, tuner_layers
from grmlight.models.modes import evaluating
from grmlight.models.outputs import Outputs, Signal
from grmlight.models.padded import padded_states

KIND = "policy"
"""Of its folder, in `grmlight.json`."""


Critic = Literal["shared", "apart"]

_LINEAR = HeadConfig(kind="linear", dropout=0.0)


class ValueHeads(InFloat32):
    """One head for each value to be learned, each giving 0 at first.

    Args:
        hidden_size: size of the hidden states.
        count: heads.
        config: their shape.
        seed: of their initial parameters.
    """

    def __init__(self, hidden_size: int, count: int, config: HeadConfig, seed: int = 0) -> None:
        super().__init__()
        self.heads = nn.ModuleList(RewardHead(hidden_size, config, seed + number) for number in range(count))
        for head in self.heads:
            *_, final = (layer for layer in head.modules() if isinstance(layer, nn.Linear))
            nn.init.zeros_(final.weight)
            nn.init.zeros_(final.bias)

    def forward(self, hidden_LH: Float[Tensor, "L H"]) -> Float[Tensor, "K L"]:
        """A float32 value of each head for each hidden state."""
        return torch.stack([head(hidden_LH) for head in self.heads])


class PolicyModel(CausalModel):
    """A causal LM as a policy: `forward` gives log-probs, and those of its reference.

    Args:
        backbone, seed, reference, packing: see `CausalModel`.
        values: heads of its critic; 0 for none.
        critic: what the critic reads: "shared", the policy's hidden states; "apart", those of adapters of its own on
            the same backbone, or where everything trains of a decoder of its own.
        value_head: the shape of its heads.

    Source: the implicit reward is that of DPO (arXiv 2305.18290), equation 5, without its beta.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        seed: int = 0,
        reference: bool = False,
        packing: Packing = "auto",
        values: int = 0,
        critic: Critic = "shared",
        value_head: HeadConfig | None = None,
    ) -> None:
        super().__init__(backbone, seed, reference, packing)
        if critic not in ("shared", "apart"):
            raise ValueError(f"critic must be 'shared' or 'apart', got {critic!r}")
        self._heads, self._head = values, value_head or _LINEAR
        self._reads: Critic = critic
        self.values = ValueHeads(hidden_size(self.lm), values, self._head, seed) if values else None
        self.critic: nn.Module | None = None
        self._adapters: list[str] = []
        if values and critic == "apart":
            self._set_apart(seed)

    def _set_apart(self, seed: int) -> None:
        """Give the critic adapters or a decoder of its own."""
        if isinstance(self.backbone, PeftModel):
            self._adapters = add_adapters(self.backbone, [seed])
            if self.backbone_config.gradient_checkpointing:
                enable_checkpointing(self.lm, context_fn=same_adapter)
        else:
            self.critic = copy.deepcopy(decoder(self.lm))

    def _critic_states(self, batch: GroupBatch, states: HiddenStates) -> HiddenStates:
        """What the critic reads of a batch."""
        if self.critic is not None:
            return (
                packed_states(self.critic, batch) if self.packed else padded_states(self.critic, batch, self.bucketed)
            )
        if len(self._adapters) < 2:
            return states
        with adapter_on(self._tuned, self._adapters[1]):
            return self._states(self.lm, batch)

    def forward(self, batch: GroupBatch, signals: frozenset[Signal] = frozenset()) -> Outputs:
        """Log-probs of every response, of the chosen alone where no more is asked for, and what else is asked for.

        `rewards_N` are the log-ratios to the reference, without gradient, or the log-probs where it is not asked for.

        Raises:
            ValueError: this model's LM head is of an unknown kind; or a sequence is too long, as in `RewardModel`.
        """
        signals = signals if Signal.CHOSEN_LOGPS in signals else signals | {Signal.LOGPS}
        self._check_signals(signals)
        self._check_length(batch)
        # First, so that the adapters are back before anything is recorded for backward.
        reference_N, reference_L = self._reference_logps(batch) if Signal.REFERENCE_LOGPS in signals else (None, None)
        with adapter_on(self._tuned, self._adapters[0]) if self._adapters else contextlib.nullcontext():
            states = self._states(self.lm, batch)
        logps_N, logps_L = self._logps(states, batch, signals)
        values_KL = None
        if Signal.VALUES in signals:
            assert self.values is not None
            values_KL = self.values(self._critic_states(batch, states).at_source())
        assert logps_N is not None
        return Outputs(
            rewards_N=logps_N.detach() if reference_N is None else logps_N.detach() - reference_N,
            logps_N=logps_N,
            logps_L=logps_L,
            reference_logps_N=reference_N,
            reference_logps_L=reference_L,
            values_KL=values_KL,
            hidden_NH=states.at_last() if Signal.HIDDEN in signals else None,
        )

    def blank(self) -> Self:
        """A model of the same shape with random weights, whole and on the CPU, without a reference."""
        backbone = dataclasses.replace(self.backbone_config, pretrained=False, gradient_checkpointing=False)
        packing: Packing = "auto" if self.packed else "never"
        return type(self)(backbone, packing=packing, values=self._heads, critic=self._reads, value_head=self._head)

    def generate(
        self, prompts: Sequence[np.ndarray], owners: Sequence[int], pick: Pick, ends: Collection[int], limit: int
    ) -> list[Decoded]:
        """Continue prompts as `grmlight.models.decoding.decode` does. A sharded model's ranks all call, equally often.

        Sharding makes this a forward of the whole model (`grmlight.models.parallel.shard`): what lies outside the
        layers is gathered once for all tokens.
        """
        return decode(self.lm, prompts, owners, pick, ends, limit, together=isinstance(self, FSDPModule))

    @torch.no_grad()
    def base_states(self, batch: GroupBatch) -> Float[Tensor, "N H"]:
        """Hidden states at the responses' last tokens, in eval mode and with every adapter off.

        A sharded model's ranks all call, equally often: as `generate`, sharding makes it a forward of the whole model.

        Errors: ValueError for a sequence that is too long, as in `RewardModel`.
        """
        self._check_length(batch)
        with evaluating(self.lm), adapters_off(self.backbone):
            return self._states(self.lm, batch).at_last()

    def folder_entries(self) -> dict[str, Any]:
        """What `grmlight.json` says of this model beside its preparation options."""
        return {"kind": KIND}

    def save_pretrained(
        self, directory: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Write a folder that transformers loads as a causal LM; adapters are merged into a float32 copy."""
        with checkpoint.writing(directory) as part:
            checkpoint.merged(self).save_pretrained(part)
            if tokenizer is not None:
                tokenizer.save_pretrained(part)

    @staticmethod
    def of_critic(name: str) -> bool:
        """Whether a tensor of this name in the state dict is the critic's own, and so no part of the policy."""
        return name.startswith(("values.", "critic.")) or ".member_1." in name

    @property
    def _tuned(self) -> Sequence[BaseTunerLayer]:
        return tuner_layers(self.backbone)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str], **options: Any) -> Self:
        """Load a causal LM's folder.

        Args:
            directory: the folder.
            options: `dtype`, `lora`, `frozen` and `gradient_checkpointing` of `BackboneConfig`; the rest goes to the
                constructor.

        Raises:
            ValueError: no causal LM lies there, or its tensors do not fit; names them.
        """
        chosen = {name: options.pop(name) for name in checkpoint.BACKBONE_OPTIONS & options.keys()}
        return cls(BackboneConfig(name=os.fspath(directory), **chosen), **options)

    def float32_parts(self) -> list[nn.Module]:
        """What stays in float32 where the layers compute in another dtype: the critic's heads."""
        return [] if self.values is None else [self.values]
