"""Groups as text: what scorers outside training take, before any tokenizer has seen it."""

from __future__ import annotations

import dataclasses

from grmlight.data.render import Message


@dataclasses.dataclass(frozen=True)
class TextGroup:
    """A prompt and the responses to it.

    Attributes:
        prompt: plain text (a single user's turn), or messages with `role` and `content` that end with a user's.
        responses: one or more answers.
    """

    prompt: str | tuple[Message, ...]
    responses: tuple[str, ...]
