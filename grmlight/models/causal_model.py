"""CausalModel: a causal LM that runs on packs, and its log-probs; what reward models and policies have in common.

Notable decisions:

- The decoder runs without its LM head; log-probs are computed at the scored positions alone, in chunks.
- A model is packed only if the gate proved it right; otherwise it runs on length-bucketed padding and says so.
- The reference is the same weights with adapters off, or a frozen copy, which no state dict holds.
"""

from __future__ import annotations

import copy
import logging
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from grmlight.data.batch import GroupBatch
from grmlight.models import gate
from grmlight.models.attention import PACKED
from grmlight.models.backbone import (
    BackboneConfig,
    decoder,
    keeps_language_head,
    language_head,
    load_backbone,
    read_config,
)
from grmlight.models.hidden import HiddenStates, packed_states, rotary_limit
from grmlight.models.logprobs import LogitTransform, token_logps
from grmlight.models.lora import adapters_off
from grmlight.models.modes import evaluating
from grmlight.models.outputs import Signal
from grmlight.models.padded import padded_states

logger = logging.getLogger("grmlight")

Packing = Literal["auto", "never"]


class CausalModel(nn.Module):
    """A causal LM on packs of groups.

    Args:
        backbone: the causal LM.
        seed: of random weights. The same seed gives the same weights on every rank.
        reference: keep a frozen copy of a fully trained backbone, from which reference log-probs are computed where a
            batch does not carry them. Adapters are switched off instead.
        packing: "never" pads even if the model could be packed.

    Attributes:
        packed: whether it runs packed.
        bucketed: whether a batch that is not packed may take several forwards, one a length bucket.

    Raises:
        ValueError: a model that cannot be loaded, one line that says why.
    """

    def __init__(
        self, backbone: BackboneConfig, seed: int = 0, reference: bool = False, packing: Packing = "auto"
    ) -> None:
        super().__init__()
        if packing not in ("auto", "never"):
            raise ValueError(f"packing must be 'auto' or 'never', got {packing!r}")
        self.backbone_config = backbone
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
        self._transform = LogitTransform.of(config)
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

    def _check_signals(self, signals: frozenset[Signal]) -> None:
        if not signals & {Signal.CHOSEN_LOGPS, Signal.LOGPS, Signal.REFERENCE_LOGPS}:
            return
        if not self.has_language_head:
            raise ValueError(
                "this reward model came as a sequence classifier, without an LM head, so it has no log-probs; "
                "train it without penalties on log-probs, or begin from its causal LM"
            )
        if not self._logps_known:
            raise ValueError(
                f"{type(self.lm).__name__} computes its logits in a way that grmlight does not know; "
                "train it without penalties on log-probs"
            )

    def _token_logps(
        self, lm: PreTrainedModel, states: HiddenStates, batch: GroupBatch, chosen_L: Int[Tensor, " l"] | None = None
    ) -> Float[Tensor, " l"]:
        """The log-prob of each scored token, or of the chosen ones among them."""
        head = language_head(lm)
        targets_L = batch.target_L if chosen_L is None else batch.target_L.index_select(0, chosen_L)
        return token_logps(states.at_source(chosen_L), head.weight, head.bias, targets_L, self._transform)

    def _logps(
        self, states: HiddenStates, batch: GroupBatch, signals: frozenset[Signal]
    ) -> tuple[Float[Tensor, " N"] | None, Float[Tensor, " L"] | None]:
        """Log-probs of the responses and of their tokens; of the chosen alone, NaN for the other responses."""
        if Signal.LOGPS in signals:
            logps_L = self._token_logps(self.lm, states, batch)
            return batch.sum_by_response(logps_L), logps_L
        if Signal.CHOSEN_LOGPS not in signals:
            return None, None
        chosen_L = self._token_logps(self.lm, states, batch, batch.chosen_L)
        response_L = batch.response_L.index_select(0, batch.chosen_L)
        sums_N = batch.sum_at(response_L, chosen_L)
        return sums_N.where(_better(batch), torch.nan), None

    @torch.no_grad()
    def _reference_logps(self, batch: GroupBatch) -> tuple[Float[Tensor, " N"], Float[Tensor, " L"] | None]:
        """The same under the reference; those of the tokens are unknown where the batch brings the responses'."""
        if batch.reference_logps_N is not None:
            return batch.reference_logps_N, None
        lm = self.reference or self.lm
        if lm is self.lm and self.backbone_config.lora is None and not self.backbone_config.frozen:
            raise ValueError(
                "the batch carries no reference log-probs and this model keeps no copy to compute them; "
                "build it with reference=True"
            )
        with evaluating(lm), adapters_off(lm):
            logps_L = self._token_logps(lm, self._states(lm, batch), batch)
            return batch.sum_by_response(logps_L), logps_L


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
