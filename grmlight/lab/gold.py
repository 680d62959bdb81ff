"""The gold reward: what an answer is worth, exactly, from its text.

It stands for people. Eight parts, each visible in the words, are weighted and added; then the sum is standardized on
what the pretrained LM answers to ID prompts, so that one unit is one standard deviation of that policy.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from grmlight.lab.words import BANG, COMMA, DEAR, EXCITED, FILLERS, POLITE, TOPIC_OF, VALUES
from grmlight.lab.world import Prompt, World

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Float64

WEIGHTS = {
    "count": 1.0,
    "topic": 1.5,
    "fact": 2.0,
    "distinct": 1.0,
    "avoid": 1.0,
    "style": 1.0,
    "grammar": 1.0,
    "concise": 0.5,
}


@dataclasses.dataclass(frozen=True)
class Parts:
    """The unweighted parts of the gold. All lie in 0 to 1, and `concise` in -2 to 0; 1 (or 0) is best.

    Attributes:
        count: 1 for the asked number of items, 0.5 for one too many or too few, else 0.
        topic: share of the well-formed items that are on the topic.
        fact: share of the well-formed items that state the true value of the asked relation.
        distinct: distinct entities over well-formed items.
        avoid: 1 unless the forbidden entity is named.
        style: polite is a leading "dear" alone, excited a final "!" alone, plain neither.
        grammar: share of well-formed items; halved if the answer does not end.
        concise: minus the filler words an item, at most 2.
    """

    count: float
    topic: float
    fact: float
    distinct: float
    avoid: float
    style: float
    grammar: float
    concise: float

    @property
    def total(self) -> float:
        """The weighted sum, at most 8.5."""
        return math.fsum(weight * getattr(self, name) for name, weight in WEIGHTS.items())


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer taken apart.

    Attributes:
        dear: it begins with "dear".
        bang: it ends with "!".
        items: the words of each item; items are separated by commas.
    """

    dear: bool
    bang: bool
    items: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Answer:
        """Take any text apart; it need not be well-formed."""
        words = text.split()
        dear = words[:1] == [DEAR]
        words = words[dear:]
        bang = words[-1:] == [BANG]
        words = words[: len(words) - bang]
        segments: list[list[str]] = [[]] if words else []
        for word in words:
            if word == COMMA:
                segments.append([])
            else:
                segments[-1].append(word)
        return cls(dear, bang, tuple(map(tuple, segments)))

    @property
    def text(self) -> str:
        """The answer in words."""
        body = f" {COMMA} ".join(" ".join(item) for item in self.items)
        return " ".join(part for part in (DEAR * self.dear, body, BANG * self.bang) if part)


def stated_fact(item: Sequence[str]) -> tuple[str, str] | None:
    """The (entity, value) that a well-formed item states: fillers, an entity, a value; None for any other item."""
    start = 0
    while start < len(item) and item[start] in FILLERS:
        start += 1
    if len(item) - start != 2 or item[start] not in TOPIC_OF or item[start + 1] not in VALUES:
        return None
    return item[start], item[start + 1]


def parts(world: World, prompt: Prompt, text: str, ended: bool = True) -> Parts:
    """The parts of the gold of an answer.

    Args:
        world: its facts.
        prompt: what was asked.
        text: the answer's words, without special tokens.
        ended: whether the answer ended (with the end token) rather than being cut off.
    """
    answer = Answer.parse(text)
    items = len(answer.items)
    facts = [fact for item in answer.items if (fact := stated_fact(item))]
    well_formed = max(len(facts), 1)
    fillers = sum(word in FILLERS for item in answer.items for word in item)
    return Parts(
        count=1 - min(abs(items - prompt.count), 2) / 2,
        topic=sum(TOPIC_OF[entity] == prompt.topic for entity, _ in facts) / well_formed,
        fact=sum(world.facts[entity, prompt.relation] == value for entity, value in facts) / well_formed,
        distinct=len({entity for entity, _ in facts}) / well_formed,
        avoid=float(prompt.forbidden is None or prompt.forbidden not in text.split()),
        style=float((answer.dear, answer.bang) == (prompt.style == POLITE, prompt.style == EXCITED)),
        grammar=len(facts) / max(items, 1) * (1 if ended else 0.5),
        concise=0 - min(fillers / max(items, 1), 2),
    )


@lru_cache(maxsize=4096)
def _parsed(prompt: str) -> Prompt:
    return Prompt.parse(prompt)


@dataclasses.dataclass(frozen=True)
class Gold:
    """The gold reward of a world, standardized.

    Attributes:
        world: its facts.
        mean: mean of the weighted sum over the pretrained LM's answers to ID prompts.
        deviation: its standard deviation there.
    """

    world: World
    mean: float = 0.0
    deviation: float = 1.0

    def score(self, prompt: Prompt | str, text: str, ended: bool = True) -> float:
        """The gold of one answer, in standard deviations of the pretrained LM's answers."""
        asked = _parsed(prompt) if isinstance(prompt, str) else prompt
        return (parts(self.world, asked, text, ended).total - self.mean) / self.deviation

    def scores(
        self, prompts: Iterable[Prompt | str], texts: Iterable[str], ended: Iterable[bool] | None = None
    ) -> Float64[np.ndarray, " answers"]:
        """The gold of each answer to the prompt beside it. All answers have ended unless `ended` says otherwise."""
        rows = list(zip(prompts, texts, strict=True))
        flags = [True] * len(rows) if ended is None else list(ended)
        return np.array([self.score(*row, flag) for row, flag in zip(rows, flags, strict=True)], dtype=np.float64)
