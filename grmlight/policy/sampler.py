"""Sampler: anything that answers prompts as a policy does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from grmlight.policy.rollouts import PromptText, Rollouts


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How answers are drawn.

    Attributes:
        samples: answers a prompt.
        max_new_tokens: longest answer, the end token included.
        temperature: of the logits; 0 takes the most probable token.
        top_p: smallest set of tokens with this probability; 1 for all.
        top_k: so many most probable tokens; 0 for all.
        rows_per_batch: answers drawn at once, at most.
    """

    samples: int = 1
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    rows_per_batch: int = 256

    def __post_init__(self) -> None:
        if min(self.samples, self.max_new_tokens, self.rows_per_batch) < 1:
            raise ValueError(
                "samples, max_new_tokens and rows_per_batch must be at least 1, got "
                f"{self.samples}, {self.max_new_tokens}, {self.rows_per_batch}"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                "temperature and top_k must not be negative, and top_p must lie above 0 and at most at 1, got "
                f"{self.temperature}, {self.top_k}, {self.top_p}"
            )


class Sampler(Protocol):
    """Draws answers.

    Attributes:
        name: what it is called in reports.
    """

    name: str

    def generate(self, prompts: Sequence[PromptText], options: SamplingOptions, seed: int) -> Rollouts:
        """Answers to each prompt, in the order given.

        The same prompts, options and seed give the same answers, whatever was drawn before; no generator of the
        caller's is changed.
        """
        ...
