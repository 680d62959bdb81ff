"""Groups as text: what scorers outside training take, before any tokenizer has seen it."""

from __future__ import annotations

import dataclasses

from grmlight.data.render import Message

PromptText = str | tuple[Message, ...]
"""A prompt: plain text (a single user's turn), or messages with `role` and `content` that end with a user's."""

Response = str | tuple[Message, ...]
"""An answer; or, where conversations go different ways, the messages behind the prompt, an assistant's at the end."""


@dataclasses.dataclass(frozen=True)
class TextGroup:
    """A prompt and the responses to it.

    Attributes:
        prompt: text or messages.
        responses: one or more answers.
        source: the data set it comes from, if `paper_text` shall look at it: it instructs summarization prompts.
        ended: for each response whether it ended by itself, rather than being cut off; empty if all did.
    """

    prompt: PromptText
    responses: tuple[Response, ...]
    source: str = ""
    ended: tuple[bool, ...] = ()


def final_answer(response: Response) -> str:
    """What the assistant says at last."""
    return response if isinstance(response, str) else response[-1]["content"]
