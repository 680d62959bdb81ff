"""Groups of token sequences that the model tests share."""

from __future__ import annotations

import random

from tests.reference.packing import shared_prompt
from tests.tiny_models import VOCABULARY


def sequences(rng: random.Random, prompt: int, *lengths: int) -> list[list[int]]:
    """Whole sequences that share exactly their first `prompt` tokens."""
    start = [rng.randrange(3, VOCABULARY) for _ in range(prompt)]
    # Different first tokens, so that no more than the prompt is shared.
    firsts = rng.sample(range(3, VOCABULARY), len(lengths))
    return [
        start + [first] + [rng.randrange(3, VOCABULARY) for _ in range(length - 1)]
        for first, length in zip(firsts, lengths, strict=True)
    ]


def mixed_groups() -> list[list[list[int]]]:
    """Groups of 1, 2 and 4 responses; one without a shared prompt, one response of a single token."""
    rng = random.Random(5)
    return [
        sequences(rng, 12, 7, 4),
        sequences(rng, 9, 6),
        sequences(rng, 0, 5, 11),
        sequences(rng, 15, 3, 8, 1, 6),
    ]


def starts(groups: list[list[list[int]]], early: int = 0) -> list[list[int]]:
    """Where scoring begins: at the end of the shared prompt, or `early` tokens before."""
    return [[max(shared_prompt(group) - early, 0)] * len(group) for group in groups]
