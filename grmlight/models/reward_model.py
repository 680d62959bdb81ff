"""RewardModel: a causal LM that keeps its LM head, and a reward head on the last token's hidden state.

Notable decisions:

- One forward returns everything (rewards, log-probs, reference log-probs), so that DDP and FSDP see all use of it.
- Saved models have the layout of the GRM authors' released ones: the LM's tensors, `v_head.summary.*`, `vhead_*` keys.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grmlight.data.batch import GroupBatch
from grmlight.models import checkpoint
from grmlight.models.backbone import BackboneConfig, hidden_size
from grmlight.models.causal_model import CausalModel, Packing
from grmlight.models.heads import HeadConfig, RewardHead
from grmlight.models.hidden import SKIPPED_TOKEN, before_skipped
from grmlight.models.outputs import Outputs, Signal


class RewardModel(CausalModel):
    """A reward model on a causal LM.

    Args:
        backbone: the causal LM.
        head: the reward head.
        seed: of random weights. The same seed gives the same weights on every rank.
        reference: keep a frozen copy for reference log-probs; see `CausalModel`.
        packing: "never" pads even if the model could be packed.

    Attributes:
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
        super().__init__(backbone, seed, reference, packing)
        self.head_config = head or HeadConfig()
        self.skipped: int | None = getattr(self.lm.config, SKIPPED_TOKEN, None)
        self.head = RewardHead(hidden_size(self.lm), self.head_config, seed)
        self.register_buffer("reward_shift", torch.zeros((), dtype=torch.float32, device="cpu"))
        self.register_buffer("reward_scale", torch.ones((), dtype=torch.float32, device="cpu"))

    def forward(self, batch: GroupBatch, signals: frozenset[Signal] = frozenset()) -> Outputs:
        """Rewards of every response in the batch, and the signals asked for.

        Raises:
            ValueError: log-probs are asked for, and this model's LM head is of an unknown kind; or a sequence is so
                long that it would change the rewards of the others.
        """
        self._check_signals(signals)
        self._check_length(batch)
        if self.skipped is not None:
            batch = before_skipped(batch, self.skipped)
        # First, so that the adapters are back before anything is recorded for backward.
        reference_N = self._reference_logps(batch)[0] if Signal.REFERENCE_LOGPS in signals else None
        states = self._states(self.lm, batch)
        last_NH = states.at_last()
        return Outputs(
            rewards_N=(self.head(last_NH) - self.reward_shift) / self.reward_scale,
            logps_N=self._logps(states, batch, signals)[0],
            reference_logps_N=reference_N,
            hidden_NH=last_NH if Signal.HIDDEN in signals else None,
        )

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
