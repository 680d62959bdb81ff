"""RewardModel: a causal LM that keeps its LM head, and a reward head on the last token's hidden state.

Notable decisions:

- One forward returns everything (rewards, log-probs, reference log-probs), so that DDP and FSDP see all use of it.
- The decoder runs without its LM head; log-probs are computed at the scored positions alone, in chunks.
- A model is packed only if the gate proved it right; otherwise it runs on length-bucketed padding and says so.
- Saved models have the layout of the GRM authors' released ones: the LM's tensors, `v_head.summary.*`, `vhead_*` keys.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grmlight.data.batch import GroupBatch
from grmlight.models import checkpoint, gate
from grmlight.models.attention import PACKED
from grmlight.models.backbone import (
    BackboneConfig,
    decoder,
    hidden_size,
    keeps_language_head,
    language_head,
    load_backbone,
    read_config,
)
from grmlight.models.heads import HeadConfig, RewardHead
from grmlight.models.hidden import SKIPPED_TOKEN, HiddenStates, before_skipped, packed_states, rotary_limit
from grmlight.models.logprobs import LogitTransform, token_logps
from grmlight.models.lora import adapters_off
from grmlight.models.modes import evaluating
from grmlight.models.outputs import Outputs, Signal
from grmlight.models.padded import padded_states

logger = logging.getLogger("grmlight")

Packing = Literal["auto", "never"]

_LM_HEAD_SIGNALS = frozenset({Signal.CHOSEN_LOGPS, Signal.LOGPS})


class RewardModel(nn.Module):
    """A reward model on a causal LM.

    Args:
        backbone: the causal LM.
        head: the reward head.
        seed: of random weights. The same seed gives the same weights on every rank.
        reference: keep a frozen copy of a fully trained backbone, from which `Signal.REFERENCE_LOGPS` is computed where
            a batch does not carry them. Adapters are switched off instead.
        packing: "never" pads even if the model could be packed.

    Attributes:
        packed: whether it runs packed.
        bucketed: whether a batch that is not packed may take several forwards, one a length bucket.
        skipped: a token at texts' ends before which the reward is read, as the classifier that the model came from
            does.
        reward_shift, reward_scale: statistics for recentering: the forward returns (reward - shift) / scale.

    Raises:
        ValueError: a model that cannot be loaded, one line that says why.
    """

    reward_shift: Tensor
    reward_scale: Tensor

    def __init__(
        self,
        backbone: BackboneConfig,
        head: HeadConfig | None = None,
        seed: int = 0,
        reference: bool = False,
        packing: Packing = "auto",
    ) -> None:
        super().__init__()
        if packing not in ("auto", "never"):
            raise ValueError(f"packing must be 'auto' or 'never', got {packing!r}")
        self.backbone_config, self.head_config = backbone, head or HeadConfig()
        config = read_config(backbone)
        passed = gate.packs(config)
        self.packed, self.bucketed = passed.ok and packing == "auto", True
        if packing == "auto" and not passed.ok:
            _tell_padded(backbone.name or config.model_type, passed.reason)
        self.backbone = load_backbone(backbone, config, PACKED if self.packed else None, seed)
        if not self.packed:
            self._check_padded(backbone.name or config.model_type, gate.pads(config))
        self._logps_known = bool(gate.logps_agree(self.lm) if passed.logps is None else passed.logps)
        self._limit = rotary_limit(config)
        self.skipped: int | None = getattr(config, SKIPPED_TOKEN, None)
        self._transform = LogitTransform.of(config)
        self.head = RewardHead(hidden_size(self.lm), self.head_config, seed)
        self.register_buffer("reward_shift", torch.zeros((), dtype=torch.float32, device="cpu"))
        self.register_buffer("reward_scale", torch.ones((), dtype=torch.float32, device="cpu"))
        copies = reference and backbone.lora is None and not backbone.frozen
        self.reference = copy.deepcopy(self.lm).requires_grad_(False).eval() if copies else None
        self.register_state_dict_post_hook(_drop_reference)
        self.register_load_state_dict_post_hook(_forgive_reference)

    @property
    def lm(self) -> PreTrainedModel:
        """The causal LM itself, with adapters inside if there are any."""
        lm = self.backbone.get_base_model() if isinstance(self.backbone, PeftModel) else self.backbone
        assert isinstance(lm, PreTrainedModel)
        return lm

    @property
    def has_language_head(self) -> bool:
        """Whether it can give log-probs at all: a sequence classifier has lost its LM head, unless that was tied."""
        return keeps_language_head(self.lm.config)

    def forward(self, batch: GroupBatch, signals: frozenset[Signal] = frozenset()) -> Outputs:
        """Rewards of every response in the batch, and the signals asked for.

        Raises:
            ValueError: log-probs are asked for, and this model's LM head is of an unknown kind; or a sequence is so
                long that it would change the rewards of the others.
        """
        if not self.has_language_head and signals & (_LM_HEAD_SIGNALS | {Signal.REFERENCE_LOGPS}):
            raise ValueError(
                "this reward model came as a sequence classifier, without an LM head, so it has no log-probs; "
                "train it without penalties on log-probs, or begin from its causal LM"
            )
        if not self._logps_known and signals & (_LM_HEAD_SIGNALS | {Signal.REFERENCE_LOGPS}):
            raise ValueError(
                f"{type(self.lm).__name__} computes its logits in a way that grmlight does not know; "
                "train it without penalties on log-probs"
            )
        self._check_length(batch)
        if self.skipped is not None:
            batch = before_skipped(batch, self.skipped)
        # First, so that the adapters are back before anything is recorded for backward.
        reference_N = self._reference_logps(batch) if Signal.REFERENCE_LOGPS in signals else None
        states = self._states(self.lm, batch)
        last_NH = states.at_last()
        logps_N = None
        if signals & _LM_HEAD_SIGNALS:
            logps_N = self._logps(self.lm, states, batch, chosen=Signal.LOGPS not in signals)
        return Outputs(
            rewards_N=(self.head(last_NH) - self.reward_shift) / self.reward_scale,
            logps_N=logps_N,
            reference_logps_N=reference_N,
            hidden_NH=last_NH if Signal.HIDDEN in signals else None,
        )

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything but the reference, which stays in eval mode."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self

    def train_language_head(self, train: bool) -> None:
        """Say before training whether any step will ask for log-probs.

        Without one, an LM head of its own would get no gradient, which DDP refuses; so it is frozen. A head that is
        tied to the input embeddings, and every part of a frozen backbone or one with adapters, stays as it is.
        """
        if not self.has_language_head:
            return
        head = language_head(self.lm)
        tied = head.weight is self.lm.get_input_embeddings().weight
        if not tied and not self.backbone_config.frozen and self.backbone_config.lora is None:
            head.requires_grad_(train)

    def blank(self) -> Self:
        """A model of the same shape with random weights, whole and on the CPU, without a reference."""
        backbone = dataclasses.replace(self.backbone_config, pretrained=False, gradient_checkpointing=False)
        return type(self)(backbone, self.head_config, packing="auto" if self.packed else "never")

    def folder_entries(self) -> dict[str, Any]:
        """What `grmlight.json` says of this model beside its preparation options: this kind is the default."""
        return {}

    def save_pretrained(
        self, directory: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Write a folder that `from_pretrained` and the GRM authors' code can load; adapters are merged into a copy."""
        checkpoint.save(self, directory, tokenizer)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str], **options: Any) -> Self:
        """Load what `save_pretrained` wrote.

        Args:
            directory: the folder.
            options: `dtype`, `lora`, `frozen` and `gradient_checkpointing` of `BackboneConfig`; the rest goes to the
                constructor.

        Raises:
            ValueError: no reward model lies there, or its tensors do not fit; names them.
        """
        return checkpoint.load(cls, directory, options)

    def float32_parts(self) -> list[nn.Module]:
        """What stays in float32 where the layers compute in another dtype."""
        return [self.head]

    def _check_length(self, batch: GroupBatch) -> None:
        if self._limit is not None and (longest := batch.layout.longest) > self._limit:
            raise ValueError(
                f"a sequence has {longest} tokens; beyond {self._limit} this model's rotary scaling would make rewards "
                f"depend on what else is in a batch; set max_length to {self._limit} or less"
            )

    def _check_padded(self, name: str, fault: str | None) -> None:
        """Refuse a model whose rewards would depend on the padding; without a verdict, look at the model itself."""
        if fault is None:
            with evaluating(self.lm):
                fault = gate.padding_fault(self.lm)
        if fault:
            raise ValueError(
                f"{name} can be neither packed nor padded ({fault}): its rewards would depend on what else is in a "
                "batch; choose another model"
            )

    def _states(self, lm: PreTrainedModel, batch: GroupBatch) -> HiddenStates:
        return packed_states(decoder(lm), batch) if self.packed else padded_states(decoder(lm), batch, self.bucketed)

    def _logps(self, lm: PreTrainedModel, states: HiddenStates, batch: GroupBatch, chosen: bool) -> Float[Tensor, " N"]:
        """Summed log-probs of each response's scored tokens; of the `chosen` alone, NaN for the others."""
        head, targets_L, response_L = language_head(lm), batch.target_L, batch.response_L
        if chosen:
            targets_L, response_L = (each.index_select(0, batch.chosen_L) for each in (targets_L, response_L))
        states_LH = states.at_source(batch.chosen_L if chosen else None)
        logps_L = token_logps(states_LH, head.weight, head.bias, targets_L, self._transform)
        sums_N = logps_L.new_zeros(batch.responses).index_add(0, response_L, logps_L)
        return sums_N.where(_better(batch), torch.nan) if chosen else sums_N

    @torch.no_grad()
    def _reference_logps(self, batch: GroupBatch) -> Float[Tensor, " N"]:
        if batch.reference_logps_N is not None:
            return batch.reference_logps_N
        lm = self.reference or self.lm
        if lm is self.lm and self.backbone_config.lora is None and not self.backbone_config.frozen:
            raise ValueError(
                "the batch carries no reference log-probs and this model keeps no copy to compute them; "
                "build it with reference=True"
            )
        with evaluating(lm), adapters_off(lm):
            return self._logps(lm, self._states(lm, batch), batch, chosen=False)


def _better(batch: GroupBatch) -> Bool[Tensor, " N"]:
    """Which responses are the better one of some comparison."""
    return torch.zeros_like(batch.last_N, dtype=torch.bool).index_fill(0, batch.better_C, True)


def _tell_padded(name: str, reason: str) -> None:
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        logger.warning("%s is not packed: %s. It runs on length-bucketed padding: exact, but slower", name, reason)


def _drop_reference(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:  # noqa: ARG001
    """The reference is what training began with: it is made again, never stored."""
    for name in [name for name in state if name.startswith(f"{prefix}reference.")]:
        del state[name]


def _forgive_reference(module: nn.Module, keys: Any) -> None:  # noqa: ARG001
    keys.missing_keys[:] = [name for name in keys.missing_keys if "reference" not in name.split(".")]
