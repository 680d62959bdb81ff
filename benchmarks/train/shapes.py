"""The lengths that are trained on: a population of pairs, and one batch that stands for it.

A prompt's length is lognormal, and so are those of its two responses, which are correlated. The token ceilings are what
packing and sharing can gain if a token costs the same everywhere: a step cannot be faster than its tokens are fewer.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from grmlight.models.padded import length_buckets

Pair = tuple[int, int, int]
"""Tokens of prompt, chosen and rejected."""

_POPULATION = 8192
_CANDIDATES = 512


@dataclasses.dataclass(frozen=True)
class Shape:
    """A distribution of lengths, in tokens; a sequence has at most 2,048."""

    name: str
    prompt: int
    response: int


SHAPES = {
    shape.name: shape
    for shape in (Shape("reference", 150, 250), Shape("short_prompt", 60, 300), Shape("long_prompt", 800, 200))
}

_PROMPT_SIGMA, _RESPONSE_SIGMA, _CORRELATION = 1.0, 0.7, 0.5
_LONGEST_PROMPT, _LONGEST = 1500, 2048


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Token ratios: padded to real tokens, the same in length buckets of one batch, and real to shared ones."""

    padded_to_real: float
    bucketed_to_real: float
    real_to_shared: float

    @property
    def padded_to_shared(self) -> float:
        """What padding costs beside packing with shared prompts."""
        return self.padded_to_real * self.real_to_shared

    @property
    def bucketed_to_shared(self) -> float:
        """What length buckets cost beside packing with shared prompts."""
        return self.bucketed_to_real * self.real_to_shared


def population(shape: Shape, seed: int = 0) -> list[Pair]:
    """Many pairs of a shape."""
    draw = np.random.default_rng(seed)
    prompts = np.minimum(
        np.exp(math.log(shape.prompt) + _PROMPT_SIGMA * draw.standard_normal(_POPULATION)), _LONGEST_PROMPT
    )
    common = draw.standard_normal((_POPULATION, 1)) * math.sqrt(_CORRELATION)
    own = draw.standard_normal((_POPULATION, 2)) * math.sqrt(1 - _CORRELATION)
    responses = np.exp(math.log(shape.response) + _RESPONSE_SIGMA * (common + own))
    pairs = []
    for prompt, (chosen, rejected) in zip(prompts, responses, strict=True):
        length = max(4, int(prompt))
        pairs.append((length, *(int(min(max(4, each), _LONGEST - length)) for each in (chosen, rejected))))
    return pairs


def ceilings(pairs: list[Pair], batch: int) -> Ceilings:
    """The ratios over all batches in turn."""
    real = sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in pairs)
    shared = sum(sum(pair) for pair in pairs)
    padded = bucketed = 0
    for first in range(0, len(pairs), batch):
        some = pairs[first : first + batch]
        padded += 2 * len(some) * max(prompt + max(sides) for prompt, *sides in some)
        lengths = [prompt + side for prompt, *sides in some for side in sides]
        bucketed += sum(len(bucket) * lengths[bucket[0]] for bucket in length_buckets(lengths))
    return Ceilings(padded / real, bucketed / real, real / shared)


def typical_batch(pairs: list[Pair], batch: int) -> list[Pair]:
    """Of the first batches the one whose padding, sharing and size are closest to the population's."""
    whole, size = ceilings(pairs, batch), batch * sum(map(sum, pairs)) / len(pairs)

    def distance(some: list[Pair]) -> float:
        real = sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in some)
        shared = sum(map(sum, some))
        padded = 2 * len(some) * max(prompt + max(sides) for prompt, *sides in some)
        ratios = (padded / real / whole.padded_to_real, real / shared / whole.real_to_shared, shared / size)
        return sum(abs(math.log(ratio)) for ratio in ratios)

    candidates = (pairs[first : first + batch] for first in range(0, _CANDIDATES * batch, batch))
    return min((some for some in candidates if len(some) == batch), key=distance)
