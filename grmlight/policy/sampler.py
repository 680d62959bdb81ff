"""Sampler: anything that answers prompts as a policy does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

from grmlight.policy.rollouts import PromptText, Rollouts

VLLM = "vllm:"
"""What a policy's name begins with that vLLM shall sample from."""


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
        for name in ("samples", "max_new_tokens", "rows_per_batch"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (the most probable token) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1 (all tokens), got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, got {self.top_k}")


class Sampler(Protocol):
    """Draws answers.

    Attributes:
        name: what it is called in reports.
    """

    name: str

    def refused(self, prompts: Sequence[PromptText], options: SamplingOptions) -> dict[int, str]:
        """Prompts that `generate` would refuse (empty, too long, ...), by their place, and why."""
        ...

    def generate(
        self, prompts: Sequence[PromptText], options: SamplingOptions, seed: int, numbers: Sequence[int] | None = None
    ) -> Rollouts:
        """Answers to each prompt, in the order given.

        The same prompts, options and seed give the same answers, whatever was drawn before; no generator of the
        caller's is changed.

        Args:
            prompts: what shall be answered.
            options: how.
            seed: of the draws.
            numbers: for each prompt the number that, with the seed, decides what is drawn for it; default: its place.
                Prompts that are dealt to ranks, or asked for in parts, keep their answers by keeping their numbers.

        Errors: ValueError names a prompt that cannot be sampled from.
        """
        ...


def open_sampler(name: str) -> Sampler:
    """The sampler of a policy.

    Args:
        name: a model folder, a run directory or a hub name; `vllm:NAME` samples with vLLM.

    Errors: ValueError in one line for what is no causal LM, or cannot be loaded.
    """
    if name.startswith(VLLM):
        from grmlight.policy.vllm import open_vllm

        return open_vllm(name.removeprefix(VLLM))
    from grmlight.policy.huggingface import open_huggingface

    return open_huggingface(name)
