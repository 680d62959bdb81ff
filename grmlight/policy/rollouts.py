"""Rollouts: what a policy answered, as data. They are groups, as everything that a model reads.

Notable decisions:

- Answers are kept as tokens and as text: the policy learns from its own tokens, rewards are read from text.
- Log-probs are the policy's own, of the untruncated distribution at temperature 1.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from grmlight.data.batch import GroupBatch
from grmlight.data.encode import TokenGroup, pack
from grmlight.data.render import Message
from grmlight.data.texts import TextGroup

PromptText = str | tuple[Message, ...]
"""A prompt: plain text, or messages that end with a user's."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A sampled answer.

    Attributes:
        tokens: its ids, the end token included where it ended by itself; int64.
        text: its text without special tokens.
        ended: whether it ended by itself, rather than being cut off at the length limit.
        logps: the log-prob of each token under the policy that sampled it, float32, in nats; None where unknown.
    """

    tokens: np.ndarray
    text: str
    ended: bool
    logps: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A prompt and the answers sampled to it.

    Attributes:
        prompt: as it was given.
        prompt_tokens: as the policy read it; int64.
        answers: one or more.
    """

    prompt: PromptText
    prompt_tokens: np.ndarray
    answers: tuple[Answer, ...]

    def text_group(self) -> TextGroup:
        """As rewards read it."""
        texts = tuple(answer.text for answer in self.answers)
        return TextGroup(self.prompt, texts, ended=tuple(answer.ended for answer in self.answers))

    def token_group(self) -> TokenGroup:
        """As the policy reads it: what it sampled is scored."""
        whole = tuple(np.concatenate([self.prompt_tokens, answer.tokens]) for answer in self.answers)
        return TokenGroup(whole, (len(self.prompt_tokens),) * len(whole))


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """The answers to several prompts.

    Attributes:
        groups: one a prompt, in the order given.
        sampler: what sampled them.
        seconds: how long that took.
    """

    groups: tuple[Rollout, ...]
    sampler: str
    seconds: float

    def batch(self) -> GroupBatch:
        """One pack of all groups, without comparisons."""
        return pack([group.token_group() for group in self.groups])
