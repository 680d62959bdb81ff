"""Authors of mixed skill, and their reviewers: the writers of the world's corpus.

A document has a quality; each skill scatters around it, and each missing skill makes its own kind of mistake. Good
authors use more filler words, which the gold dislikes: a correlate that misleads, as length does in real preferences.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from grmlight.lab.gold import Answer, parts
from grmlight.lab.words import (
    EXCELLENT,
    EXCITED,
    FILLERS,
    FUNCTION_WORDS,
    ISSUES,
    POLITE,
    RELATIONS,
    REVIEW,
    STOP,
    STYLES,
    TOPICS,
    pick,
)

if TYPE_CHECKING:
    import random

    from grmlight.lab.world import Prompt, World

ERRORS = {
    "count": 0.7,
    "style": 0.6,
    "topic": 0.5,
    "fact": 0.8,
    "distinct": 0.6,
    "avoid": 0.35,
    "grammar": 0.25,
}
"""Probability of each kind of mistake at skill 0; a skill s makes it (1 - s) times as likely."""

WORDY_FROM = 0.5
"""Filler words an item from which a true review calls an answer wordy."""


@dataclasses.dataclass(frozen=True)
class Author:
    """Who writes one answer.

    Attributes:
        mistakes: probability of each kind in `ERRORS`; `avoid` and `grammar` are drawn for each item, the rest once.
        filler: probability that a filler word is written, in each of two places before each entity.
    """

    mistakes: dict[str, float]
    filler: float

    @classmethod
    def draw(cls, rng: random.Random, quality: float) -> Author:
        """An author of a quality from 0 to 1."""
        mistakes = {name: most * (1 - _clip(rng.gauss(quality, 0.2))) for name, most in ERRORS.items()}
        return cls(mistakes, _clip(rng.gauss(0.05 + 0.45 * quality**2, 0.15)))

    def errs(self, rng: random.Random, kind: str) -> bool:
        """Whether this mistake is made now."""
        return rng.random() < self.mistakes[kind]

    def write(self, world: World, prompt: Prompt, rng: random.Random) -> str:
        """An answer to the prompt."""
        count = prompt.count
        if self.errs(rng, "count"):
            count = pick(rng, [count + off for off in (-2, -1, 1, 2) if count + off > 0])
        style = prompt.style
        if self.errs(rng, "style"):
            style = pick(rng, [other for other in STYLES if other != style])
        items = self._items(world, prompt, rng, count)
        return Answer(style == POLITE, style == EXCITED, items).text

    def _items(self, world: World, prompt: Prompt, rng: random.Random, count: int) -> tuple[tuple[str, ...], ...]:
        astray = pick(rng, [topic for topic in TOPICS if topic != prompt.topic]) if self.errs(rng, "topic") else None
        lying, repetitive = self.errs(rng, "fact"), self.errs(rng, "distinct")
        items, used = [], []
        for _ in range(count):
            topic = astray if astray and rng.random() < 0.8 else prompt.topic
            if repetitive and used and rng.random() < 0.7:
                entity = pick(rng, used)
            else:
                entity = _fresh(rng, topic, used, prompt.forbidden)
            if prompt.forbidden and self.errs(rng, "avoid"):
                entity = prompt.forbidden
            used.append(entity)
            value = world.facts[entity, prompt.relation]
            if lying and rng.random() < 0.8:
                value = pick(rng, RELATIONS[prompt.relation])
            core = _garble(rng, entity, value) if self.errs(rng, "grammar") else (entity, value)
            items.append((*(pick(rng, FILLERS) for _ in range(2) if rng.random() < self.filler), *core))
        return tuple(items)


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _fresh(rng: random.Random, topic: str, used: list[str], forbidden: str | None) -> str:
    allowed = [entity for entity in TOPICS[topic] if entity != forbidden]
    return pick(rng, [entity for entity in allowed if entity not in used] or allowed)


def _garble(rng: random.Random, entity: str, value: str) -> tuple[str, ...]:
    junk = pick(rng, FUNCTION_WORDS)
    return pick(rng, ((entity,), (entity, junk, value), (value, entity)))


def issues(world: World, prompt: Prompt, text: str) -> frozenset[str]:
    """What is wrong with an answer, in a reviewer's words."""
    found = parts(world, prompt, text)
    true = (
        found.count < 1,
        found.topic < 1,
        found.fact < 1,
        found.distinct < 1,
        found.style < 1,
        found.grammar < 1,
        found.avoid < 1,
        found.concise <= -WORDY_FROM,
    )
    return frozenset(issue for issue, wrong in zip(ISSUES, true, strict=True) if wrong)


def write_review(world: World, prompt: Prompt, text: str, rng: random.Random) -> str:
    """A noisy review: each true issue is named with probability .85, each other one with .03."""
    true = issues(world, prompt, text)
    named = [issue for issue in ISSUES if rng.random() < (0.85 if issue in true else 0.03)]
    return " ".join((REVIEW, *(named or [EXCELLENT]), STOP))
