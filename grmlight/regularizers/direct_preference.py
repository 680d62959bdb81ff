"""GRM's other regularizers: DPO on the LM head, with a reference model or without."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from grmlight import losses
from grmlight.data.batch import GroupBatch
from grmlight.models.outputs import Outputs, Signal
from grmlight.regularizers.base import Mixing, Ramp, Regularizer


class DirectPreference(Regularizer):
    """DPO loss of each comparison, through the LM head that shares the reward's hidden states.

    Args:
        weight: GRM's alpha.
        beta: factor of the log-ratio margin.
        reference: subtract the log-ratio of the start model (LoRA: the adapters switched off; full training: computed
            once before the first step, see `RewardModule`). Without it that ratio is taken as 0.
        mixing: see `Regularizer`.
        name: see `Regularizer`.

    Source: GRM (arXiv 2406.10216).
    """

    def __init__(
        self,
        weight: float | Ramp = 0.01,
        beta: float = 0.1,
        reference: bool = True,
        mixing: Mixing = "convex",
        name: str = "direct_preference",
    ) -> None:
        super().__init__(weight, mixing, name)
        self.beta = beta
        self.reference = reference
        self.needs = frozenset({Signal.LOGPS, Signal.REFERENCE_LOGPS} if reference else {Signal.LOGPS})

    def penalty(self, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, " G"]:
        """The mean over a group's comparisons of their DPO loss."""
        assert outputs.logps_N is not None
        better_C, worse_C = outputs.logps_N[batch.better_C], outputs.logps_N[batch.worse_C]
        if not self.reference:
            return batch.mean_by_group(losses.dpo(better_C, worse_C, self.beta, label_C=batch.label_C))
        reference_N = outputs.reference_logps_N
        assert reference_N is not None
        reference = reference_N[batch.better_C], reference_N[batch.worse_C]
        return batch.mean_by_group(losses.dpo(better_C, worse_C, self.beta, *reference, batch.label_C))
