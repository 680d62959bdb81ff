"""Figures of answers to held-out prompts.

Shape suffixes: N answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from grmlight.policy.online.experience import Experience


def held_out_values(
    experience: Experience, watched: Mapping[str, Tensor], scored: bool
) -> dict[str, Float[Tensor, " N"]]:
    """What is known of each answer, by name; means of these are logged.

    Args:
        experience: the answers, their scores as they are combined, without shaping.
        watched: rewards that are only watched.
        scored: whether rewards are combined to a score at all.
    """
    answers = [answer for rollout in experience.rollouts for answer in rollout.answers]
    found = {f"reward_{name}": values_N for name, values_N in experience.rewards.items()}
    found |= {f"watch_{name}": values_N for name, values_N in watched.items()}
    found |= {"score": experience.scores_N} if scored else {}
    return found | {
        "kl": experience.kl_N,
        "tokens": experience.tokens_N.double(),
        "ended": torch.tensor([float(answer.ended) for answer in answers]),
        "unscored": (~experience.known_N).double(),
    }


class HeldOut:
    """Means over all batches of one set of held-out prompts; answers without a finite value enter none of that name."""

    def __init__(self) -> None:
        self._batches: list[Mapping[str, Tensor]] = []

    def add(self, values: Mapping[str, Float[Tensor, " N"]]) -> None:
        """The answers of one batch, of all ranks."""
        self._batches.append(values)

    def take(self) -> dict[str, float]:
        """The means by name, NaN where there is nothing to take one of; begins anew."""
        batches, self._batches = self._batches, []
        found = {}
        for name in batches[0] if batches else ():
            values_N = torch.cat([batch[name] for batch in batches])
            known_N = values_N[values_N.isfinite()]
            found[name] = known_N.mean().item() if len(known_N) else math.nan
        return found
