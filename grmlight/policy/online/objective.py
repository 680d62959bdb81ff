"""The loss of one pack of answers, as a pure function of what the model says and what was computed before.

Shape suffixes: L answer tokens of the pack.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from grmlight import losses
from grmlight.data.batch import GroupBatch
from grmlight.models import Outputs
from grmlight.policy import kl as estimators
from grmlight.policy.online.controllers import KlOptions
from grmlight.policy.online.experience import Experience, Streams
from grmlight.policy.online.minibatches import Chosen, Pack, token_weights
from grmlight.policy.online.options import Update


@dataclasses.dataclass(frozen=True)
class Targets:
    """What the loss needs of each token; of a whole iteration on the CPU, or of one pack on its device.

    Attributes:
        weight_L: in the step's loss; 0 for tokens that are not in it.
        even_L: the same if all of the step's tokens count alike, for figures.
        advantage_L: what the token was worth.
        old_L: its log-prob under the policy that sampled it.
        reference_L: that under the reference.
        values: what the critic said before it, by stream.
        returns: what it should have said.
    """

    weight_L: Float[Tensor, " L"]
    even_L: Float[Tensor, " L"]
    advantage_L: Float[Tensor, " L"]
    old_L: Float[Tensor, " L"]
    reference_L: Float[Tensor, " L"]
    values: tuple[Float[Tensor, " L"], ...] = ()
    returns: tuple[Float[Tensor, " L"], ...] = ()

    def of(self, pack: Pack, device: torch.device) -> Targets:
        """Those of a pack, float32; what is run only because another rank has more weighs nothing."""

        def take(values_L: Tensor) -> Tensor:
            return values_L[pack.places_L].float().to(device)

        count_L = pack.count_L.to(device)
        return Targets(
            take(self.weight_L) * count_L,
            take(self.even_L) * count_L,
            take(self.advantage_L),
            take(self.old_L),
            take(self.reference_L),
            tuple(map(take, self.values)),
            tuple(map(take, self.returns)),
        )


def targets(
    experience: Experience, told: Streams, chosen: Chosen, advantage_L: Float[Tensor, " L"], update: Update
) -> Targets:
    """Those of an iteration, for a step on the chosen answers with these advantages."""
    rows = [
        token_weights(chosen.tokens_N, chosen.known_N, update.average or "tokens"),
        token_weights(chosen.tokens_N, chosen.known_N, "tokens"),
        advantage_L,
    ]
    spread = torch.zeros(3, len(experience.logps_L), dtype=torch.float64)
    spread[:, chosen.places_L] = torch.stack(rows)
    values = tuple(experience.values[name] for name in told.returns)
    weight_L, even_L, whole_L = spread
    old_L, reference_L = experience.logps_L, experience.reference_logps_L
    return Targets(weight_L, even_L, whole_L, old_L, reference_L, values, tuple(told.returns.values()))


def terms(
    outputs: Outputs, batch: GroupBatch, target: Targets, update: Update, kl: KlOptions, coefficient: float
) -> Mapping[str, Float[Tensor, ""]]:
    """A pack's share of the step's "loss", of its terms, and of what is only looked at.

    `loss = policy + value_weight * value + coefficient * kl`, each a weighted sum over tokens. "approximate_kl" is k3
    of the sampling policy to the new one, "clipped" the share of tokens whose ratio is out of bounds. With the ratio of
    whole answers the KL is theirs too, the sum over their tokens, so that the coefficient means the same at any length.
    """
    assert outputs.logps_L is not None
    log_ratio_L = outputs.logps_L - target.old_L
    if update.ratio == "answer":
        log_ratio_L = _of_answers(log_ratio_L, batch)
    policy_L = losses.clipped_objective(log_ratio_L, target.advantage_L, update.clip)
    found = {"policy": (target.weight_L * policy_L).sum()}
    loss = found["policy"]
    if outputs.values_KL is not None:
        clip = math.inf if update.value_clip is None else update.value_clip
        errors = [
            losses.clipped_value_loss(values_L, old_L, returns_L, clip)
            for values_L, old_L, returns_L in zip(outputs.values_KL, target.values, target.returns, strict=True)
        ]
        found["value"] = (target.weight_L * torch.stack(errors).sum(0)).sum()
        loss = loss + update.value_weight * found["value"]
    if kl.where == "loss":
        kl_L = estimators.ESTIMATORS[kl.estimator](outputs.logps_L, target.reference_L)
        if update.ratio == "answer":
            kl_L = _of_answers(kl_L, batch)
        found["kl"] = (target.weight_L * kl_L).sum()
        loss = loss + coefficient * found["kl"]
    with torch.no_grad():
        found["approximate_kl"] = (target.even_L * (torch.expm1(log_ratio_L) - log_ratio_L)).sum()
        found["clipped"] = (target.even_L * ((log_ratio_L.exp() - 1).abs() > update.clip)).sum()
    return {"loss": loss, **found}


def _of_answers(values_L: Float[Tensor, " L"], batch: GroupBatch) -> Float[Tensor, " L"]:
    """For each token the sum over its answer."""
    return batch.sum_by_response(values_L).index_select(0, batch.response_L)
