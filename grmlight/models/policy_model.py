"""PolicyModel: a causal LM that is optimized against a reward.

Notable decisions:

- Its reward is the implicit one of direct alignment, log pi(response) - log reference(response) in nats, so that what
  measures reward models measures policies too.
- Log-probs are those of the response's scored tokens, summed, and token by token.
- Saved policies are plain Hugging Face folders with their tokenizer; a merged copy where there are adapters.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from typing import Any, Self

import numpy as np
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase

from grmlight.data.batch import GroupBatch
from grmlight.models import checkpoint
from grmlight.models.backbone import BackboneConfig
from grmlight.models.causal_model import CausalModel
from grmlight.models.decoding import Decoded, Pick, decode
from grmlight.models.outputs import Outputs, Signal

KIND = "policy"
"""Of its folder, in `grmlight.json`."""


class PolicyModel(CausalModel):
    """A causal LM as a policy: `forward` gives log-probs, and those of its reference.

    Args: see `CausalModel`.

    Source: the implicit reward is that of DPO (arXiv 2305.18290), equation 5, without its beta.
    """

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
        states = self._states(self.lm, batch)
        logps_N, logps_L = self._logps(states, batch, signals)
        assert logps_N is not None
        return Outputs(
            rewards_N=logps_N.detach() if reference_N is None else logps_N.detach() - reference_N,
            logps_N=logps_N,
            logps_L=logps_L,
            reference_logps_N=reference_N,
            reference_logps_L=reference_L,
            hidden_NH=states.at_last() if Signal.HIDDEN in signals else None,
        )

    def blank(self) -> Self:
        """A model of the same shape with random weights, whole and on the CPU, without a reference."""
        backbone = dataclasses.replace(self.backbone_config, pretrained=False, gradient_checkpointing=False)
        return type(self)(backbone, packing="auto" if self.packed else "never")

    def generate(
        self, prompts: Sequence[np.ndarray], owners: Sequence[int], pick: Pick, ends: Collection[int], limit: int
    ) -> list[Decoded]:
        """Continue prompts as `grmlight.models.decoding.decode` does. A sharded model's ranks all call, equally often.

        Sharding makes this a forward of the whole model (`grmlight.models.parallel.shard`): what lies outside the
        layers is gathered once for all tokens.
        """
        return decode(self.lm, prompts, owners, pick, ends, limit, together=isinstance(self, FSDPModule))

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
        """What stays in float32 where the layers compute in another dtype: nothing."""
        return []
