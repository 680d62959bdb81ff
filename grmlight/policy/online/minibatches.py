"""Minibatches: an iteration's rollouts cut into optimizer steps, ranks and packs.

Notable decisions:

- A step is exact in answers: its loss is a weighted sum over the tokens of all its answers, whatever the number of
  ranks and packs. The weights are known before any rank computes anything.
- Prompts are shuffled by (seed, iteration, epoch) alone; a step's prompts are dealt to ranks and packs balanced by
  tokens, a prompt with many answers in several parts.
- Every rank runs equally many packs; who has nothing to run repeats something with weight 0.

Shape suffixes: N answers, L answer tokens, U units, both of the whole iteration or of a pack.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grmlight._data_rs import deal_step
from grmlight.data.batch import GroupBatch
from grmlight.data.encode import TokenGroup, cost, pack
from grmlight.policy.online.experience import Experience
from grmlight.policy.rollouts import Rollout

Average = Literal["tokens", "answers"]


@dataclasses.dataclass(frozen=True)
class Unit:
    """Some answers of one prompt, which run in one pack.

    Attributes:
        tokens: prompt and answers.
        places_L: the place of each answer token among those of the iteration.
        cost: tokens in a pack.
    """

    tokens: TokenGroup
    places_L: np.ndarray
    cost: int


@dataclasses.dataclass(frozen=True)
class Pack:
    """What one rank runs in one forward.

    Attributes:
        batch: the tokens.
        places_L: for each of its answer tokens the place among those of the iteration.
        count_L: 1, or 0 for a token that is run only because another rank has more.
    """

    batch: GroupBatch
    places_L: Int[Tensor, " L"]
    count_L: Float[Tensor, " L"]


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The answers of one optimizer step, in their order in the iteration.

    Attributes:
        answers_N: their places among those of the iteration.
        places_L: the places of their tokens.
        tokens_N: tokens of each.
        known_N: which of them have a score.
    """

    answers_N: Int[Tensor, " N"]
    places_L: Int[Tensor, " L"]
    tokens_N: Int[Tensor, " N"]
    known_N: Bool[Tensor, " N"]

    @classmethod
    def of(cls, experience: Experience, prompts: Sequence[int]) -> Self:
        """The answers to some of the iteration's prompts."""
        chosen_N = torch.isin(experience.group_N, torch.tensor(prompts, dtype=torch.int64))
        tokens_N = experience.tokens_N
        places_L = torch.repeat_interleave(chosen_N, tokens_N).nonzero()[:, 0]
        return cls(chosen_N.nonzero()[:, 0], places_L, tokens_N[chosen_N], experience.known_N[chosen_N])

    @property
    def response_L(self) -> Int[Tensor, " L"]:
        """The answer of each token, counted among those of the step."""
        return torch.repeat_interleave(torch.arange(len(self.tokens_N)), self.tokens_N)


class Packer:
    """Cuts the rollouts of one iteration.

    Args:
        rollouts: of all ranks.
        tokens_per_pack: tokens of one forward, about: packs are balanced; a single answer may be longer.
        ranks: data-parallel ranks.
        rank: this one.
    """

    def __init__(self, rollouts: Sequence[Rollout], tokens_per_pack: int, ranks: int = 1, rank: int = 0) -> None:
        self.tokens_per_pack, self.ranks, self.rank = tokens_per_pack, ranks, rank
        lengths = [len(answer.tokens) for rollout in rollouts for answer in rollout.answers]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        self._units: list[list[Unit]] = []
        answer = 0
        for rollout in rollouts:
            self._units.append([*self._parts(rollout, starts[answer:])])
            answer += len(rollout.answers)

    def packs(self, prompts: Sequence[int]) -> list[Pack]:
        """This rank's packs of these prompts' answers, equally many on every rank."""
        units = [unit for prompt in prompts for unit in self._units[prompt]]
        costs = np.array([unit.cost for unit in units], dtype=np.int64)
        packs = math.ceil(costs.sum() / (self.ranks * self.tokens_per_pack))
        shares = deal_step(costs, self.ranks, packs)[self.rank]
        return [
            _packed([units[place] for place in places], counts, len(prompts), number, packs)
            for number, (places, counts) in enumerate(shares)
        ]

    def _parts(self, rollout: Rollout, starts: np.ndarray) -> Iterator[Unit]:
        """A rollout as a whole, or in parts that fit a pack."""
        group, prompt, first = rollout.token_group(), len(rollout.prompt_tokens), 0
        lengths = [len(answer.tokens) for answer in rollout.answers]
        while first < len(lengths):
            tokens, last = prompt + lengths[first], first + 1
            while last < len(lengths) and tokens + lengths[last] <= self.tokens_per_pack:
                tokens, last = tokens + lengths[last], last + 1
            part = TokenGroup(group.responses[first:last], group.starts[first:last])
            yield Unit(part, np.arange(starts[first], starts[last]), cost(part))
            first = last


def minibatches(prompts: int, count: int, seed: int) -> list[np.ndarray]:
    """The prompts of each optimizer step of one epoch: shuffled, and as equal in number as can be."""
    order = np.random.default_rng(seed).permutation(prompts)
    return np.array_split(order, count)


def token_weights(tokens_N: Int[Tensor, " N"], known_N: Bool[Tensor, " N"], average: Average) -> Float[Tensor, " L"]:
    """The weight of each token in a step's loss; they sum to 1, and those of answers without a score are 0.

    Args:
        tokens_N: tokens of the step's answers.
        known_N: which of them have a score.
        average: "tokens": each token alike; "answers": each answer alike, its tokens among themselves too.
    """
    known = known_N.double()
    weight_N = known / (tokens_N * known).sum() if average == "tokens" else known / known.sum() / tokens_N
    return torch.repeat_interleave(weight_N.nan_to_num(0.0), tokens_N)


def _packed(units: Sequence[Unit], counts: np.ndarray, prompts: int, number: int, packs: int) -> Pack:
    batch = dataclasses.replace(
        pack([unit.tokens for unit in units]),
        count_G=torch.from_numpy(counts).float(),
        groups_in_step=prompts,
        micro_batch=number,
        packs=packs,
        repeated=not counts.any(),
    )
    lengths = [len(unit.places_L) for unit in units]
    return Pack(
        batch,
        torch.from_numpy(np.concatenate([unit.places_L for unit in units])),
        torch.from_numpy(np.repeat(counts, lengths)).float(),
    )
