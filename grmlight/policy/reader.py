"""Prompts to tokens, and which tokens end an answer to them: what every sampler needs before it can draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError

from grmlight.data.encode import TextEncoder
from grmlight.data.options import PrepareOptions
from grmlight.data.texts import PromptText

_CONTENT = "grmlight"
"""An answer by which to find what a chat template puts behind answers."""


class PromptReader:
    """Reads prompts as data preparation reads those of pairs.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        options: how prompts become tokens; `max_length` is that of a prompt with its answer.
        positions: tokens that the model can read at once; None without a limit.

    Attributes:
        ends: tokens that end an answer: the tokenizer's end-of-text, and what its chat template ends a turn with.
    """

    def __init__(self, tokenizer: Any, options: PrepareOptions, positions: int | None = None) -> None:
        self.options, self.positions = options, positions
        self._encoder = TextEncoder(tokenizer, options)
        end_of_text = tokenizer.eos_token_id
        self.ends = frozenset([] if end_of_text is None else [end_of_text]) | self._end_of_turn(tokenizer)

    def _end_of_turn(self, tokenizer: Any) -> frozenset[int]:
        """The first special token that the chat template puts behind an answer."""
        if not self._encoder.renderer.wrap_text:
            return frozenset()
        turns = [{"role": "user", "content": _CONTENT}, {"role": "assistant", "content": _CONTENT}]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except TemplateError:
            return frozenset()
        behind = tokenizer(text[text.rfind(_CONTENT) + len(_CONTENT) :], add_special_tokens=False)["input_ids"]
        added = tokenizer.added_tokens_decoder
        return frozenset([token for token in behind if token in added and added[token].special][:1])

    def encode(self, prompts: Sequence[PromptText], new_tokens: int) -> list[np.ndarray | str]:
        """The prompts as tokens; a string is the reason why one is refused.

        Args:
            prompts: what shall be answered.
            new_tokens: of an answer, at most: prompts leave room for them.
        """
        return list(self._encoder.encode_prompts(prompts, self._longest(new_tokens)))

    def refused(self, prompts: Sequence[PromptText], new_tokens: int) -> dict[int, str]:
        """The prompts that cannot be sampled from, by their place, and why."""
        found = enumerate(self.encode(prompts, new_tokens))
        return {place: self._reason(each, new_tokens) for place, each in found if isinstance(each, str)}

    def read(self, prompts: Sequence[PromptText], new_tokens: int) -> list[np.ndarray]:
        """The prompts as tokens. Errors: ValueError names the first that is refused, why, and how many there are."""
        encoded = self.encode(prompts, new_tokens)
        kept = [each for each in encoded if not isinstance(each, str)]
        if len(kept) < len(encoded):
            place, reason = next((place, each) for place, each in enumerate(encoded) if isinstance(each, str))
            others = len(encoded) - len(kept) - 1
            more = f" (and {others} more of {len(encoded)})" if others else ""
            raise ValueError(f"prompt {place + 1}{more} {self._reason(reason, new_tokens)}")
        return kept

    def _longest(self, new_tokens: int) -> int | None:
        known = [limit for limit in (self.options.max_length, self.positions) if limit is not None]
        if not known:
            return None
        if (longest := min(known) - new_tokens) < 1:
            raise ValueError(
                f"max_new_tokens {new_tokens} leaves no room for a prompt: max_length is {self.options.max_length} and "
                f"the model reads {self.positions or 'any number of'} tokens; lower it"
            )
        return longest

    def _reason(self, reason: str, new_tokens: int) -> str:
        return {
            "empty": "is empty; leave it out",
            "template": "is refused by the chat template; check its roles",
            "over_length": (
                f"has more than {self._longest(new_tokens)} tokens, which is what max_length {self.options.max_length} "
                f"and the model's {self.positions} positions leave beside {new_tokens} new ones; leave it out, or set "
                "on_overlong to truncate_prompt"
            ),
        }[reason]
