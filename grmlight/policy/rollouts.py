"""Rollouts: what a policy answered, as data. They are groups, as everything that a model reads.

Notable decisions:

- Answers are kept as tokens and as text: the policy learns from its own tokens, rewards are read from text.
- Log-probs are the policy's own, of the untruncated distribution at temperature 1.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from grmlight.data.batch import GroupBatch
from grmlight.data.encode import TokenGroup, pack
from grmlight.data.files import write_whole
from grmlight.data.texts import PromptText as PromptText
from grmlight.data.texts import TextGroup

logger = logging.getLogger("grmlight")


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

    @property
    def answers(self) -> Iterator[Answer]:
        """All answers, prompt by prompt."""
        return (answer for group in self.groups for answer in group.answers)

    def describe(self) -> str:
        """One line: how many answers, what drew them, how long that took, and how many are empty or cut off."""
        found = list(self.answers)
        tokens = sum(len(answer.tokens) for answer in found)
        empty, cut = sum(map(_is_empty, found)), sum(not answer.ended for answer in found)
        return (
            f"sampled by {self.sampler}: {len(found)} answers to {len(self.groups)} prompts, {tokens} tokens in "
            f"{self.seconds:.1f} s; {empty} empty, {cut} cut off at the length limit"
        )


def _is_empty(answer: Answer) -> bool:
    """Whether it says nothing: only end-of-text, only special tokens, or only space."""
    return not answer.text.strip()


def checked(rollouts: Rollouts, samples: int) -> Rollouts:
    """The same rollouts, if they are what was asked for; empty answers are counted and named in a warning.

    Errors: ValueError for a prompt with fewer answers than asked for, and for log-probs that are not finite.
    """
    for number, group in enumerate(rollouts.groups, 1):
        if len(group.answers) != samples:
            raise ValueError(
                f"sampler {rollouts.sampler}: prompt {number} has {len(group.answers)} of {samples} answers; sample it "
                "again"
            )
        if any(answer.logps is not None and not np.isfinite(answer.logps).all() for answer in group.answers):
            raise ValueError(
                f"sampler {rollouts.sampler}: the log-probs of prompt {number}'s answers are not finite; the policy's "
                "weights have gone bad, go back to a checkpoint"
            )
    empty = [number for number, group in enumerate(rollouts.groups, 1) for each in group.answers if _is_empty(each)]
    if empty:
        total = sum(len(group.answers) for group in rollouts.groups)
        logger.warning(
            "sampler %s: %d of %d answers are empty (only end-of-text), the first to prompt %d",
            *(rollouts.sampler, len(empty), total, empty[0]),
        )
    return rollouts


def write_rollouts(path: Path, rollouts: Rollouts) -> None:
    """Write JSON lines, whole or not at all: first what sampled and for how long, then a rollout a line."""
    lines = [{"sampler": rollouts.sampler, "seconds": rollouts.seconds}, *map(_as_row, rollouts.groups)]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_rollouts(path: Path) -> Rollouts:
    """Read what `write_rollouts` wrote, exactly.

    Errors: ValueError names the line that is none of a rollout.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    number = 1
    try:
        head = json.loads(lines[0])
        sampler, seconds = str(head["sampler"]), float(head["seconds"])
        groups = []
        for number, line in enumerate(lines[1:], 2):  # noqa: B007
            groups.append(_from_row(json.loads(line)))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: line {number} is none of rollouts ({error!r}); sample them again") from error
    return Rollouts(tuple(groups), sampler, seconds)


def _as_row(rollout: Rollout) -> dict[str, Any]:
    answers = [
        {
            "tokens": answer.tokens.tolist(),
            "text": answer.text,
            "ended": answer.ended,
            # A float32 is a float64 exactly, and JSON keeps those.
            "logps": None if answer.logps is None else answer.logps.tolist(),
        }
        for answer in rollout.answers
    ]
    prompt = rollout.prompt if isinstance(rollout.prompt, str) else list(rollout.prompt)
    return {"prompt": prompt, "prompt_tokens": rollout.prompt_tokens.tolist(), "answers": answers}


def _from_row(row: dict[str, Any]) -> Rollout:
    answers = tuple(
        Answer(
            np.array(each["tokens"], np.int64),
            each["text"],
            bool(each["ended"]),
            None if each["logps"] is None else np.array(each["logps"], np.float32),
        )
        for each in row["answers"]
    )
    prompt = row["prompt"] if isinstance(row["prompt"], str) else tuple(row["prompt"])
    return Rollout(prompt, np.array(row["prompt_tokens"], np.int64), answers)
