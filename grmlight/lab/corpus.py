"""The corpus that the LM is pretrained on: prompts of every kind, answers of every quality, and most often a review.

The review follows the answer's end token. It is what makes the hidden state at that token carry what is right and wrong
with the answer: the counterpart of criticism in web text. Reward models read that state and never see a review.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from grmlight.lab.author import Author, write_review
from grmlight.lab.words import BOS, EOS, SEP, stream
from grmlight.lab.world import Prompt, Split, World, draw_prompt

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

REVIEWED = 0.8


@dataclasses.dataclass(frozen=True)
class Document:
    """A prompt, an answer, and a review or nothing."""

    prompt: Prompt
    answer: str
    review: str = ""

    @property
    def text(self) -> str:
        """The document as the LM reads it, special tokens included."""
        return f"{BOS} {self.prompt.text} {SEP} {self.answer} {EOS} {self.review}".strip()


def write_document(world: World, rng: random.Random) -> Document:
    """A document of random quality."""
    prompt = draw_prompt(rng, Split.ANY)
    answer = Author.draw(rng, rng.random()).write(world, prompt, rng)
    return Document(prompt, answer, write_review(world, prompt, answer, rng) if rng.random() < REVIEWED else "")


def corpus(world: World, documents: int, name: str = "corpus") -> Iterator[Document]:
    """The first documents of a world's corpus; another name gives another, independent corpus."""
    rng = stream(world.seed, name)
    for _ in range(documents):
        yield write_document(world, rng)
