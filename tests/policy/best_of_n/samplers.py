"""Samplers that are not models: what they say is a function of (seed, prompt, sample), as every sampler's is."""

from __future__ import annotations

import hashlib
import os
import signal

import numpy as np

from grmlight.policy.rollouts import Answer, Rollout, Rollouts
from grmlight.policy.sampler import SamplingOptions

WORDS = "red green blue cat dog fox".split()


class Dice:
    """One to three words an answer; many answers come several times."""

    name = "dice"

    def __init__(self, refuse: tuple[int, ...] = ()) -> None:
        self.refuse, self.calls = refuse, 0

    def refused(self, prompts, options: SamplingOptions) -> dict[int, str]:
        return dict.fromkeys(self.refuse, "is empty; leave it out")

    def generate(self, prompts, options: SamplingOptions, seed: int, numbers=None) -> Rollouts:
        self.calls += 1
        numbers = range(len(prompts)) if numbers is None else numbers
        groups = [
            Rollout(prompt, np.zeros(1, np.int64), tuple(self.say(seed, number, s) for s in range(options.samples)))
            for prompt, number in zip(prompts, numbers, strict=True)
        ]
        return Rollouts(tuple(groups), self.name, 0.25)

    def say(self, seed: int, number: int, sample: int) -> Answer:
        draw = hashlib.sha256(f"{seed} {number} {sample}".encode()).digest()
        words = [WORDS[byte % len(WORDS)] for byte in draw[: 1 + draw[31] % 3]]
        return Answer(np.arange(len(words) + 1), " ".join(words), ended=draw[30] % 8 > 0)


class Mute(Dice):
    """Nothing but end-of-text."""

    name = "mute"

    def say(self, seed: int, number: int, sample: int) -> Answer:
        return Answer(np.zeros(1, np.int64), "", ended=True)


class Mortal(Dice):
    """Dice in a process that is killed at a call."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.call = call

    def generate(self, *given, **named) -> Rollouts:
        if self.calls == self.call:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(*given, **named)
