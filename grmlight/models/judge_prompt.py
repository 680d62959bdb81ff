"""What a generative judge reads: two answers in a template; and which tokens say that one of them is better."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from grmlight.data.render import Message
from grmlight.data.texts import Response

TEMPLATE = """\
Two assistants answered the last message of the conversation below. Judge which answer serves the user better: it \
should be helpful, correct, honest and harmless. Length and order say nothing about quality.

[Conversation]
{prompt}

[Answer A]
{a}

[Answer B]
{b}

[Question]
Which answer is better? Reply with one letter, A or B.
Better answer:"""
"""The default template: `{prompt}`, `{a}` and `{b}` are filled in."""

_FIELDS = re.compile(r"\{(prompt|a|b)\}")


class JudgePrompt:
    """Renders and tokenizes the question which of two answers is better.

    The template is a user's message if the tokenizer has a chat template, and plain text if not.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        template: text with `{prompt}`, `{a}` and `{b}`, each once.

    Attributes:
        tokens_2F: for each letter, A and B, the token ids that stand for it behind the prompt: with and without a
            leading space, where the tokenizer tells the two apart.

    Raises:
        ValueError: a field that is missing or repeated, or letters without a token of their own.
    """

    def __init__(self, tokenizer: Any, template: str = TEMPLATE) -> None:
        self.tokenizer, self.template = tokenizer, template
        self._chat = bool(tokenizer.chat_template)
        if sorted(_FIELDS.findall(template)) != ["a", "b", "prompt"]:
            raise ValueError("the judge's template must hold {prompt}, {a} and {b}, each once")
        if not self._chat and template.rstrip().endswith(("{prompt}", "{a}", "{b}")):
            raise ValueError("the judge's template must end with a question behind its last field")
        self.tokens_2F = self._answer_tokens()

    def render(self, prompt: str | Sequence[Message], first: Response, second: Response) -> str:
        """The question whether `first`, as answer A, is better than `second`.

        Raises:
            ValueError: the chat template refuses it.
        """
        text = filled(self.template, prompt, first, second)
        if not self._chat:
            return text
        messages = [{"role": "user", "content": text}]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the judge's question ({error})") from error

    def tokenize(self, questions: list[str]) -> list[list[int]]:
        """Their token ids."""
        return self.tokenizer(questions, add_special_tokens=not self._chat)["input_ids"] if questions else []

    def _answer_tokens(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        question = self.render("a question", "an answer", "another")
        found = set()
        for space in ("",) if question[-1:].isspace() else ("", " "):
            start, ids_A, ids_B = self.tokenize([question, *(question + space + letter for letter in "AB")])
            if all(ids[:-1] == start for ids in (ids_A, ids_B)):
                found.add((ids_A[-1], ids_B[-1]))
        letters = {id_ for pair in found for id_ in pair}
        if not found or len(letters) < 2 * len(found) or self.tokenizer.unk_token_id in letters:
            name = self.tokenizer.name_or_path or "the tokenizer"
            raise ValueError(
                f"{name}: behind the judge's template A and B are not one token each, or not told apart; "
                "end the template in another way, or choose another model"
            )
        first, second = zip(*sorted(found), strict=True)
        return first, second


def filled(template: str, prompt: str | Sequence[Message], first: Response, second: Response) -> str:
    """A template with its `{prompt}`, `{a}` and `{b}` filled in."""
    fields = {"prompt": conversation_text(prompt), "a": conversation_text(first), "b": conversation_text(second)}
    # In one pass, so that braces in the texts stay as they are.
    return _FIELDS.sub(lambda match: fields[match[1]], template)


def conversation_text(prompt: str | Sequence[Message]) -> str:
    """A prompt or an answer as text: a single message as it is, several with their roles in front."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
