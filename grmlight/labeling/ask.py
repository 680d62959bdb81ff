"""What is asked about two answers, and who may be asked."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

from grmlight.data.render import Message

Text = str | list[Message]
Letter = Literal["A", "B"]


@dataclasses.dataclass(frozen=True)
class Question:
    """Which of two answers is better in one capability?

    Attributes:
        prompt: what was asked: text or messages.
        first, second: the answers, shown as A and B.
        capability: the capability's name.
        description: what it means.
    """

    prompt: Text
    first: Text
    second: Text
    capability: str
    description: str

    @property
    def swapped(self) -> Question:
        """The same question with the answers in the other order."""
        return dataclasses.replace(self, first=self.second, second=self.first)

    @property
    def text(self) -> str:
        """The question in words."""
        return (
            f"Compare two answers to one request in a single respect: {self.capability}. {self.description}\n"
            "Leave all other qualities aside.\n\n"
            f"[Request]\n{_plain(self.prompt)}\n\n"
            f"[Answer A]\n{_plain(self.first)}\n\n"
            f"[Answer B]\n{_plain(self.second)}\n\n"
            f"Which answer is better in {self.capability}? Reply with one letter, A or B, and nothing else."
        )


class Asker(Protocol):
    """A language model that can be asked.

    Attributes:
        name: which one; labels of another are not mixed with its own.
        parallel: questions that it takes at once.
    """

    name: str
    parallel: int

    def ask(self, question: Question) -> Letter | None:
        """The letter of the better answer; None if the reply names none.

        Errors: ValueError in one line if it cannot be asked.
        """
        ...


def _plain(text: Text) -> str:
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in text)
