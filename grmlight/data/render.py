"""Conversations to text, and where the scored response begins in it.

Notable decisions:

- Both whole conversations are rendered, never the prompt alone: templates may render a last turn in another way.
- The scored response begins where the rendering of the conversation so far (with the generation prompt) and the whole
  rendering part. Text before it is seen, but is not in the language-model loss.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal

from jinja2.exceptions import TemplateError

TextRows = Literal["auto", "chat", "plain"]
Message = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Rendering:
    """A group as text.

    Attributes:
        texts: one whole conversation a response.
        boundaries: for each, the character at which the scored response begins.
    """

    texts: list[str]
    boundaries: list[int]


class Renderer:
    """Renders the groups of a data set with a tokenizer's chat template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        text_rows: what to do with prompts and responses given as plain text. "chat" makes a user's and an assistant's
            message of them, "plain" joins them as they are, "auto" takes "chat" if the tokenizer has a template.
        paper_mask: score from the end of the first user message on, as the GRM authors' code does, so that later turns
            of the prompt enter the language-model loss too.

    Attributes:
        wrap_text: whether rows go through the chat template; if not, the tokenizer's own special tokens are added.

    Errors: ValueError if "chat" is asked for, or a row holds messages, and the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, text_rows: TextRows = "auto", paper_mask: bool = False) -> None:
        self.tokenizer = tokenizer
        self.paper_mask = paper_mask
        has_template = bool(tokenizer.chat_template)
        self.wrap_text = text_rows == "chat" or (text_rows == "auto" and has_template)
        if text_rows == "chat" and not has_template:
            raise ValueError(self._missing_template())

    def _missing_template(self) -> str:
        name = self.tokenizer.name_or_path or "this tokenizer"
        return (
            f"{name} has no chat template and the rows hold messages; set `chat_template` to a Jinja file, "
            "or use a tokenizer that has one"
        )

    def render(self, prompt: list[Message] | str, responses: list[list[Message] | str]) -> Rendering | str:
        """The texts of a group, or the template's message if it refuses the conversation."""
        is_text = isinstance(prompt, str) and all(isinstance(response, str) for response in responses)
        if not self.wrap_text:
            return self._join(prompt, responses, is_text)
        if is_text and not prompt:
            raise ValueError(
                "the rows hold whole texts without a prompt; set `text_rows: plain` to keep them as they are"
            )
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            return self._render_chat(turns, [_as_messages(response) for response in responses])
        except TemplateError as error:
            return str(error)

    def render_prompt(self, prompt: list[Message] | str) -> Rendering | str:
        """A prompt up to where its response begins, or the template's message if it refuses the conversation."""
        if not self.wrap_text:
            return self._join(prompt, [""], isinstance(prompt, str))
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            text = self._apply(turns, generate=True)
        except TemplateError as error:
            return str(error)
        return Rendering([text], [len(text)])

    def _join(self, prompt: Any, responses: list[Any], is_text: bool) -> Rendering:
        if not is_text and self.tokenizer.chat_template:
            raise ValueError("`text_rows` is plain and the rows hold messages; set it to auto or chat")
        if not is_text:
            raise ValueError(self._missing_template())
        start = len(prompt) or _shared_words(responses)
        return Rendering([prompt + response for response in responses], [start] * len(responses))

    def _render_chat(self, prompt: list[Message], responses: list[list[Message]]) -> Rendering:
        texts = [self._apply(prompt + response) for response in responses]
        if self.paper_mask:
            last = next((i for i, m in enumerate(prompt) if m["role"] == "user"), len(prompt) - 1)
            heads = [self._apply(prompt[: last + 1], generate=True)] * len(responses)
        else:
            heads = [self._apply(prompt + response[:-1], generate=True) for response in responses]
        boundaries = [_shared(head, text) for head, text in zip(heads, texts, strict=True)]
        return Rendering(texts, boundaries)

    def _apply(self, messages: list[Message], generate: bool = False) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)


def _as_messages(response: list[Message] | str) -> list[Message]:
    return [{"role": "assistant", "content": response}] if isinstance(response, str) else response


def _shared(left: str, right: str) -> int:
    """Characters of the longest common beginning."""
    if right.startswith(left):
        return len(left)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def _shared_words(texts: list[str]) -> int:
    """Characters of the longest common beginning, cut back to just before a space so that no response is empty."""
    shared = min(*(_shared(texts[0], text) for text in texts), min(len(text) for text in texts) - 1)
    while shared > 0 and not texts[0][shared].isspace():
        shared -= 1
    return max(shared, 0)
