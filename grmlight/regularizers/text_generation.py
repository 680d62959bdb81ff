"""The paper's default regularizer: keep writing the chosen responses."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from grmlight import losses
from grmlight.data.batch import GroupBatch
from grmlight.models.outputs import Outputs, Signal
from grmlight.regularizers.base import Mixing, Ramp, Regularizer

Form = Literal["log_sigmoid", "nll", "token_mean"]


class TextGeneration(Regularizer):
    """SFT on the better response of each comparison, through the LM head that shares the reward's hidden states.

    Args:
        weight: GRM's alpha.
        form: "log_sigmoid" is the paper's `-log sigmoid(beta log pi)`, "nll" the summed negative log-likelihood,
            "token_mean" the same a token.
        beta: factor of the log-prob in "log_sigmoid".
        mixing: see `Regularizer`.
        name: see `Regularizer`.

    Source: GRM (arXiv 2406.10216).
    """

    needs = frozenset({Signal.CHOSEN_LOGPS})

    def __init__(
        self,
        weight: float | Ramp = 0.01,
        form: Form = "log_sigmoid",
        beta: float = 0.1,
        mixing: Mixing = "convex",
        name: str = "text_generation",
    ) -> None:
        super().__init__(weight, mixing, name)
        self.form: Form = form
        self.beta = beta

    def penalty(self, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, " G"]:
        """The mean over a group's comparisons of the loss of the better response."""
        assert outputs.logps_N is not None
        logps_C = outputs.logps_N[batch.better_C]
        if self.form == "log_sigmoid":
            values_C = losses.sft_log_sigmoid(logps_C, self.beta)
        elif self.form == "nll":
            values_C = losses.sft_nll(logps_C)
        else:
            values_C = losses.sft_token_mean(logps_C, batch.scored_tokens_N()[batch.better_C])
        return batch.mean_by_group(values_C)
