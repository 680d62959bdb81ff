"""The words of the embedded world, and its named streams of random numbers.

Notable decisions:

- One word is one token, so lengths, positions and gold parts can be checked by eye.
- Facts, prompts and answers are drawn with `random.random` and `random.gauss` alone, so that no Python version or
  machine changes them.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

PAD, UNKNOWN, BOS, SEP, EOS = SPECIALS = ("<pad>", "<unk>", "<bos>", "<sep>", "<eos>")

TOPICS = {
    "animals": ("cat", "dog", "fox", "owl", "hen"),
    "hats": ("cap", "beret", "bonnet", "helmet", "turban"),
    "boats": ("canoe", "ferry", "yacht", "raft", "barge"),
    "fruits": ("apple", "pear", "plum", "fig", "lime"),
    "tools": ("hammer", "saw", "drill", "spade", "axe"),
    "flowers": ("rose", "tulip", "lily", "daisy", "iris"),
    "drums": ("snare", "bongo", "tabla", "conga", "djembe"),
    "seats": ("chair", "stool", "bench", "sofa", "throne"),
}
RELATIONS = {
    "color": ("red", "blue", "green", "white", "black", "yellow"),
    "place": ("attic", "cellar", "garden", "harbor", "market", "tower"),
}
COUNTS = ("one", "two", "three", "four", "five")
PLAIN, POLITE, EXCITED = STYLES = ("plain", "polite", "excited")
FILLERS = ("well", "so", "really")
COMMA, BANG, DEAR, STOP, REVIEW, EXCELLENT = (",", "!", "dear", ".", "review", "excellent")
ISSUES = ("miscounted", "offtopic", "untrue", "repetitive", "unstyled", "garbled", "banned", "wordy")
FUNCTION_WORDS = ("tell", "list", "of", "but", "no", "avoid", "i", "want", "with", "without", "please")

TOPIC_OF = {entity: topic for topic, entities in TOPICS.items() for entity in entities}
ENTITIES = tuple(TOPIC_OF)
VALUES = frozenset(value for values in RELATIONS.values() for value in values)

VOCABULARY = (
    *SPECIALS,
    *(COMMA, BANG, DEAR, STOP, REVIEW, EXCELLENT),
    *ISSUES,
    *TOPICS,
    *RELATIONS,
    *COUNTS,
    *(POLITE, EXCITED),
    *FUNCTION_WORDS,
    *FILLERS,
    *ENTITIES,
    *(value for values in RELATIONS.values() for value in values),
)


def stream(*names: int | str) -> random.Random:
    """An independent, reproducible stream of random numbers for each sequence of names."""
    return random.Random("/".join(map(str, names)))  # noqa: S311 - simulation, not security


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.random() * len(options))]
