"""The embedded world: its facts, and the prompts that ask for them.

A prompt asks for some entities of a topic, with their color or their place, in a style, perhaps without one of them:
`tell two animals color avoid cat excited`. A seed fixes which entity has which color and place, and nothing else.
"""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from grmlight.lab.words import (
    COUNTS,
    ENTITIES,
    EXCITED,
    PLAIN,
    POLITE,
    RELATIONS,
    STYLES,
    TOPIC_OF,
    TOPICS,
    pick,
    stream,
)

if TYPE_CHECKING:
    import random

FORBIDDING = ("avoid", "but no", "without")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is asked for.

    Attributes:
        topic: a key of `TOPICS`.
        relation: a key of `RELATIONS`.
        count: entities asked for, 1 to 5.
        style: one of `STYLES`.
        forbidden: an entity of the topic that must not be named, or None.
        template: wording, 0 to 3. The gold does not depend on it.
    """

    topic: str
    relation: str
    count: int
    style: str = PLAIN
    forbidden: str | None = None
    template: int = 0

    @property
    def text(self) -> str:
        """The prompt in words."""
        topic, relation, count = self.topic, self.relation, COUNTS[self.count - 1]
        avoid, but, without = (f" {words} {self.forbidden}" * bool(self.forbidden) for words in FORBIDDING)
        style = f" {self.style}" * (self.style != PLAIN)
        return (
            f"tell {count} {topic} {relation}{avoid}{style}",
            f"{style} list {relation} of {count} {topic}{but}",
            f"i want {count} {topic} with {relation}{without}{style}",
            f"{relation} of {topic}{avoid} {count} please{style}",
        )[self.template].strip()

    @classmethod
    def parse(cls, text: str) -> Prompt:
        """Read a prompt back from its words. ValueError for text that is no prompt of this world."""
        words = text.split()
        fields = {
            "topic": [word for word in words if word in TOPICS],
            "relation": [word for word in words if word in RELATIONS],
            "count": [COUNTS.index(word) + 1 for word in words if word in COUNTS],
        }
        if any(len(found) != 1 for found in fields.values()):
            raise ValueError(f"{text!r} is no prompt of the embedded world: it needs a topic, a relation, a count")
        style = next((word for word in words if word in STYLES), PLAIN)
        forbidden = next((word for word in words if word in TOPIC_OF), None)
        template = next((i for i, word in enumerate(("tell", "list", "want", "please")) if word in words), 0)
        return cls(fields["topic"][0], fields["relation"][0], fields["count"][0], style, forbidden, template)


class Split(StrEnum):
    """Which prompts may be drawn. Reward models are trained on ID alone; the LM has read all of them."""

    ID = "id"
    OOD_TOPIC = "ood_topic"
    OOD_TEMPLATE = "ood_template"
    OOD_ALL = "ood_all"
    ANY = "any"

    @property
    def topics(self) -> tuple[str, ...]:
        """ID has the first four topics, shifted topics are the other four."""
        names = tuple(TOPICS)
        return {Split.ANY: names, Split.OOD_TOPIC: names[4:], Split.OOD_ALL: names[4:]}.get(self, names[:4])

    @property
    def templates(self) -> tuple[int, ...]:
        """ID has templates 0 and 1, shifted templates are 2 and 3."""
        return {Split.ANY: (0, 1, 2, 3), Split.OOD_TEMPLATE: (2, 3), Split.OOD_ALL: (2, 3)}.get(self, (0, 1))

    @property
    def counts(self) -> tuple[int, ...]:
        """ID asks for 1 to 3 entities; shifted templates ask for 4 or 5."""
        return {Split.ANY: (1, 2, 3, 4, 5), Split.OOD_TEMPLATE: (4, 5), Split.OOD_ALL: (4, 5)}.get(self, (1, 2, 3))

    def holds(self, prompt: Prompt) -> bool:
        """Whether the prompt belongs to this split."""
        return prompt.topic in self.topics and prompt.template in self.templates and prompt.count in self.counts


TRAIN = "train"
SAMPLED = {split.value: split for split in (Split.ID, Split.OOD_TOPIC, Split.OOD_TEMPLATE, Split.OOD_ALL)}
WRITTEN = ("good", "hack")
TESTS = (*SAMPLED, *WRITTEN)
"""The names of a world's sets of pairs: sampled from the LM, and written by authors."""


def draw_prompt(rng: random.Random, split: Split) -> Prompt:
    """A prompt of the split, every attribute independent; 40% forbid an entity."""
    topic = pick(rng, split.topics)
    return Prompt(
        topic=topic,
        relation=pick(rng, tuple(RELATIONS)),
        count=pick(rng, split.counts),
        style=pick(rng, (PLAIN, POLITE, EXCITED)),
        forbidden=pick(rng, TOPICS[topic]) if rng.random() < 0.4 else None,
        template=pick(rng, split.templates),
    )


@dataclasses.dataclass(frozen=True)
class World:
    """A world: one seed, one table of facts."""

    seed: int = 0

    @cached_property
    def facts(self) -> dict[tuple[str, str], str]:
        """The value of each (entity, relation)."""
        rng = stream(self.seed, "facts")
        return {(entity, relation): pick(rng, RELATIONS[relation]) for entity in ENTITIES for relation in RELATIONS}
