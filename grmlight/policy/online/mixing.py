"""Mixing: one advantage for each token from those of several rewards.

Every reward has its own advantages (and with GAE its own value head); the KL to the reference is one of them, under the
name `KL`. Once an iteration the module tells the mixer what its answers returned, and for each optimizer step asks it
to mix advantages. All ranks hold all rollouts, so they do it alike, on the CPU.

Shape suffixes: L answer tokens, N answers.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

KL = "kl"
"""The name of the reward `-log(policy / reference)` of each token, in nats, without a coefficient."""


@dataclasses.dataclass(frozen=True)
class Minibatch:
    """The answers of one optimizer step, of all ranks.

    Attributes:
        response_L: the answer of each token. Ascending.
        rewards: each reward's value of each answer (length N), NaN where it has none; without `KL`.
        kl_coefficient: the KL controller's at this iteration.
    """

    response_L: Int[Tensor, " L"]
    rewards: Mapping[str, Float[Tensor, " N"]]
    kl_coefficient: float


class Mixer(ABC):
    """Makes one advantage of several. Its state is kept in checkpoints, so it is plain data."""

    @property
    def name(self) -> str:
        """What curves call it."""
        return type(self).__name__

    def setup(self, names: Sequence[str]) -> None:
        """Before training: the names of all rewards, `KL` among them.

        Errors: ValueError for a name that the mixer needs or knows and that is not there.
        """
        return

    def shape(self, rewards: Mapping[str, Float[Tensor, " N"]]) -> Mapping[str, Float[Tensor, " N"]]:
        """What is optimized in place of each reward's value of each answer; NaN stays NaN. `KL` is not among them."""
        return rewards

    def update(self, reward_to_go: Mapping[str, float]) -> dict[str, float]:
        """Before `mix`, once an iteration; returns figures to log, by name.

        Args:
            reward_to_go: for each name, `KL` included, the mean over the iteration's answers that have all rewards of
                the sum of its rewards from the first token on, discounted by gamma. The critic is not in it.

        Errors: a ValueError, raised before anything of the mixer changes, ends the run with a checkpoint of the step
        before.
        """
        return {}

    @abstractmethod
    def mix(self, advantages: Mapping[str, Float[Tensor, " L"]], batch: Minibatch) -> Float[Tensor, " L"]:
        """The advantage of each token; `advantages` has an entry for each name, in the rewards' own scale."""

    def finish(self) -> None:
        """At the end of training: say what was not reached, if anything."""
        return

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: numbers, strings, lists and dictionaries."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        return


class WeightedSum(Mixer):
    """A fixed weight for each reward; the KL has the controller's coefficient.

    Args:
        weights: by name; a reward that is not named has weight 1.
    """

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        self.weights = dict(weights or {})
        if KL in self.weights:
            raise ValueError(f"mixing: the weight of {KL!r} is the KL coefficient; set model.init_args.kl.coefficient")

    def setup(self, names: Sequence[str]) -> None:
        """Errors: ValueError for a weight of no reward."""
        if unknown := sorted(self.weights.keys() - set(names)):
            raise ValueError(f"mixing: weights for {', '.join(unknown)}, and the rewards are {', '.join(names)}")

    def mix(self, advantages: Mapping[str, Float[Tensor, " L"]], batch: Minibatch) -> Float[Tensor, " L"]:
        """The weighted sum."""
        weights = {KL: batch.kl_coefficient} | self.weights
        return torch.stack([weights.get(name, 1.0) * values_L for name, values_L in advantages.items()]).sum(0)
