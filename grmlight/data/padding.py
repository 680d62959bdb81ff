"""A pad token that never occurs in texts: engines that find padding by its id then read each text's last token."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from jinja2.exceptions import TemplateError

NEW_TOKEN = "<|reward_pad|>"  # noqa: S105

_RESERVED = re.compile(r"^\W*(pad|finetune_right_pad_id|reserved_special_token_\d+|reserved_\d+|unused_?\d+)\W*$", re.I)
"""Tokens that vocabularies keep free."""

_PROBE = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


@dataclasses.dataclass(frozen=True)
class Pad:
    """The pad token of an exported model.

    Attributes:
        token: the token.
        id: its id.
        fault: why the tokenizer's own was not kept; empty if it was.
        is_new: whether the token is added to the vocabulary.
    """

    token: str
    id: int
    fault: str = ""
    is_new: bool = False


def safe_pad(tokenizer: Any, ends: Iterable[int] = ()) -> Pad:
    """Keep a tokenizer's pad token if it never occurs, else name a reserved token, else a new one; nothing is changed.

    Args:
        tokenizer: a Hugging Face tokenizer.
        ends: ids that end a text for the model.
    """
    occurring = _occurring(tokenizer) | set(ends)
    own = tokenizer.pad_token_id
    if own is not None and own not in occurring:
        return Pad(tokenizer.pad_token, own)
    if own is None:
        fault = "the tokenizer has no pad token"
    else:
        fault = f"the tokenizer's pad token {tokenizer.pad_token} occurs in texts"
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    free = [(number, token) for token, number in special.items() if _RESERVED.match(token) and number not in occurring]
    if free:
        number, token = min(free)
        return Pad(token, number, fault)
    return Pad(NEW_TOKEN, max(tokenizer.get_vocab().values()) + 1, fault, is_new=True)


def largest_token(tokenizer: Any) -> int:
    """The largest id that a text can hold. A pad token that never occurs does not count: padding is never looked up."""
    ids = set(tokenizer.get_vocab().values())
    return max(ids - ({tokenizer.pad_token_id} - _occurring(tokenizer)))


def doubled_bos(tokenizer: Any) -> bool:
    """Whether a chat, rendered and then encoded as most engines do, begins with the begin-of-text token twice."""
    ids = tokenizer(_rendered(tokenizer))["input_ids"] if tokenizer.chat_template else []
    return len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id


def _occurring(tokenizer: Any) -> set[int]:
    """Ids that texts hold beside words: special tokens with a meaning, and what the chat template writes."""
    meant = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id} - {None}
    text = _rendered(tokenizer)
    return meant | set(tokenizer(text, add_special_tokens=False)["input_ids"])


def _rendered(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        return ""
    try:
        return tokenizer.apply_chat_template(_PROBE, tokenize=False)
    except TemplateError:
        return ""
