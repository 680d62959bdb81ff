"""What an alignment run minimizes: the objectives, their settings, and the loss of each comparison.

Shape suffixes: C comparisons, N responses.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from grmlight import losses
from grmlight.data.batch import GroupBatch
from grmlight.losses import IpoScale
from grmlight.models.outputs import Outputs, Signal

Kind = Literal["sft", "dpo", "ipo", "slic", "rpo"]
Reduction = Literal["sum", "mean"]
Base = Literal["chosen", "reference"]
Convention = Literal["paper", "openrlhf", "trl"]

_KINDS = ("sft", "dpo", "ipo", "slic", "rpo")


@dataclasses.dataclass(frozen=True)
class Anchor:
    """RPO's pull to a base distribution: `eta * [beta] * -log pi(a0|x)`. The defaults are the paper's.

    Attributes:
        eta: its weight.
        reduction: "sum" adds up the log-probs of a response's tokens, "mean" takes their mean.
        times_beta: multiply by the objective's beta too.
        base: what a0 is: the "chosen" responses, or fresh samples of the "reference", drawn before the first step.
        samples: samples of the reference for each prompt.
        max_new_tokens: of their longest, the end token included.

    Source: Liu et al. 2024, RPO (arXiv 2405.16436).
    """

    eta: float = 0.005
    reduction: Reduction = "sum"
    times_beta: bool = True
    base: Base = "chosen"
    samples: int = 1
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eta) and self.eta >= 0):
            raise ValueError(f"objective.anchor: eta must be finite and at least 0, got {self.eta}")
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f"objective.anchor: reduction must be 'sum' or 'mean', got {self.reduction!r}")
        if self.base not in ("chosen", "reference"):
            raise ValueError(f"objective.anchor: base must be 'chosen' or 'reference', got {self.base!r}")
        if min(self.samples, self.max_new_tokens) < 1:
            raise ValueError(
                "objective.anchor: samples and max_new_tokens must be at least 1, got "
                f"{self.samples} and {self.max_new_tokens}"
            )


ANCHORS: dict[str, Anchor] = {
    "paper": Anchor(),
    "openrlhf": Anchor(eta=0.2, reduction="mean", times_beta=False),
    "trl": Anchor(eta=0.005, reduction="mean", times_beta=False),
}
"""The published conventions: the paper's, that of its second implementation, and that of TRL's index of papers."""


@dataclasses.dataclass(frozen=True)
class AlignmentObjective:
    """What is minimized.

    Attributes:
        kind: "sft" (negative log-likelihood of the chosen responses), "dpo", "ipo", "slic", or "rpo" (DPO with an
            anchor).
        beta: factor of the KL to the reference that the objective stands for; all but "sft".
        length_penalty: reward that each token of a response costs (length-regularized DPO, Park et al. 2024).
        scale: of "ipo": the original "paper", where `beta` is its tau, or "daa"; see `grmlight.losses.ipo`.
        form: of "sft": "nll" adds up a response's tokens, "token_mean" takes their mean.
        anchor: of "rpo": a published convention by name ("paper", "openrlhf", "trl"), or its settings one by one.
    """

    kind: Kind = "dpo"
    beta: float = 0.1
    length_penalty: float = 0.0
    scale: IpoScale = "paper"
    form: Literal["nll", "token_mean"] = "nll"
    anchor: Convention | Anchor | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"objective: there is no {self.kind!r}; choose from {', '.join(_KINDS)}")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"objective: beta must be finite and above 0, got {self.beta}")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"objective: length_penalty must be finite, got {self.length_penalty}")
        if self.scale not in ("paper", "daa"):
            raise ValueError(f"objective: scale must be 'paper' or 'daa', got {self.scale!r}")
        if self.form not in ("nll", "token_mean"):
            raise ValueError(f"objective: form must be 'nll' or 'token_mean', got {self.form!r}")
        if isinstance(self.anchor, str) and self.anchor not in ANCHORS:
            raise ValueError(
                f"objective: anchor must be one of {', '.join(ANCHORS)} or its settings, got {self.anchor!r}"
            )
        self._check_used()

    def _check_used(self) -> None:
        """A setting that the kind does not read is a mistake."""
        unused = {
            "anchor": self.anchor is not None and self.kind != "rpo",
            "scale": self.scale != "paper" and self.kind != "ipo",
            "form": self.form != "nll" and self.kind != "sft",
            "length_penalty": self.length_penalty != 0 and self.kind == "sft",
        }
        for name, wrong in unused.items():
            if wrong:
                raise ValueError(f"objective: {self.kind!r} has no {name}; drop it, or choose another kind")

    @property
    def pull(self) -> Anchor | None:
        """RPO's anchor, if there is one with a weight."""
        if self.kind != "rpo":
            return None
        anchor = self.anchor if isinstance(self.anchor, Anchor) else ANCHORS[self.anchor or "paper"]
        return anchor if anchor.eta > 0 else None

    @property
    def anchor_weight(self) -> float:
        """The factor of the anchor's negative log-likelihood in the loss."""
        anchor = self.pull
        return 0.0 if anchor is None else anchor.eta * (self.beta if anchor.times_beta else 1.0)

    @property
    def needs(self) -> frozenset[Signal]:
        """What the one forward must compute in training."""
        return frozenset({Signal.LOGPS} if self.kind == "sft" else {Signal.LOGPS, Signal.REFERENCE_LOGPS})


def comparison_loss(objective: AlignmentObjective, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, " C"]:
    """The loss of each comparison, its weight and an anchor left out; soft labels mix the losses of both sides."""
    assert outputs.logps_N is not None
    if objective.kind == "sft":
        return nll(outputs.logps_N, batch, objective.form == "token_mean").index_select(0, batch.better_C)
    margin_C = margin(objective, outputs, batch)
    beta = objective.beta
    if objective.kind == "ipo":
        return losses.ipo(margin_C, beta, objective.scale, batch.label_C)
    if objective.kind == "slic":
        return losses.slic(margin_C, beta, batch.label_C)
    return losses.preference_loss(beta * margin_C, torch.zeros_like(margin_C), batch.label_C)


def margin(objective: AlignmentObjective, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, " C"]:
    """The log-ratio margin h of each comparison, the length's share included."""
    assert outputs.logps_N is not None
    reference_N = outputs.reference_logps_N
    assert reference_N is not None
    better_C, worse_C = batch.better_C, batch.worse_C
    margin_C = losses.log_ratio_margin(
        outputs.logps_N[better_C], outputs.logps_N[worse_C], reference_N[better_C], reference_N[worse_C]
    )
    if objective.length_penalty:
        tokens_N = batch.scored_tokens_N()
        lengths = tokens_N[better_C], tokens_N[worse_C]
        margin_C = margin_C + losses.length_margin(*lengths, objective.beta, objective.length_penalty)
    return margin_C


def nll(logps_N: Float[Tensor, " N"], batch: GroupBatch, token_mean: bool) -> Float[Tensor, " N"]:
    """Negative log-likelihood of each response, summed over its tokens or their mean, in nats."""
    return losses.sft_token_mean(logps_N, batch.scored_tokens_N()) if token_mean else losses.sft_nll(logps_N)


def implicit_rewards(objective: AlignmentObjective, outputs: Outputs) -> Float[Tensor, " N"]:
    """The reward that the policy is optimal for, `beta * (log pi - log reference)`; for SFT `log pi`, in nats."""
    assert outputs.logps_N is not None
    if objective.kind == "sft":
        return outputs.logps_N
    assert outputs.reference_logps_N is not None
    return objective.beta * (outputs.logps_N - outputs.reference_logps_N)
