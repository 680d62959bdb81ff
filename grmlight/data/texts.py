"""Groups as text: what scorers outside training take, before any tokenizer has seen it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
        category: what its data set calls this kind of prompt; experts may be routed by it.
    """

    prompt: PromptText
    responses: tuple[Response, ...]
    source: str = ""
    ended: tuple[bool, ...] = ()
    category: str = ""


class GroupError(ValueError):
    """A group that cannot be scored: the message names it by its place, callers who know its row by that.

    Attributes:
        place: among the groups that were given.
        what: is wrong with it; the message behind the group's name.
    """

    def __init__(self, place: int, what: str) -> None:
        super().__init__(f"group {place + 1} {what}")
        self.place, self.what = place, what

    def of(self, rows: Sequence[object], source: str) -> ValueError:
        """The same about a row, given those of all groups."""
        return ValueError(f"{source}: row {rows[self.place]} {self.what}")


def final_answer(response: Response) -> str:
    """What the assistant says at last."""
    return response if isinstance(response, str) else response[-1]["content"]
