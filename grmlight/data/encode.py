"""Groups as text to groups as tokens, and those to packs, in memory: what a store does for pairs, for any group.

Shape suffixes are those of `grmlight.data.batch`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer

from grmlight.data.batch import GroupBatch
from grmlight.data.options import PrepareOptions
from grmlight.data.render import Message, Renderer, Rendering
from grmlight.data.texts import GroupError, PromptText, TextGroup

SUMMARIZE = "Generate one-sentence summary for the following post: "
"""What the GRM authors put before summarization prompts (`data_rs/src/record.rs` has the same)."""

_CHUNK = 512

_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class TokenGroup:
    """A group as tokens.

    Attributes:
        responses: whole sequences, prompt and response together.
        starts: for each the position of its first scored token.
        cut: tokens that were cut from the prompt's beginning.
    """

    responses: tuple[np.ndarray, ...]
    starts: tuple[int, ...]
    cut: int = 0


class TextEncoder:
    """Renders, tokenizes and cuts groups as the preparation of a training set does.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        options: how groups become tokens; what chooses among rows (stride, limit, flip, on_duplicate, ...) is not read.
    """

    def __init__(self, tokenizer: Any, options: PrepareOptions) -> None:
        self.options = options
        self.renderer = Renderer(tokenizer, options.text_rows, options.paper_mask)
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        plain = not self.renderer.wrap_text
        self._special_tokens = plain or options.paper_text
        self._appended: int | None = tokenizer.eos_token_id if plain else None
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, entry in added.items() if entry.special)

    def encode(self, groups: Sequence[TextGroup]) -> Iterator[TokenGroup | str]:
        """The groups as tokens, in order; a string is the reason why one is refused.

        Reasons: template (it refuses the conversation), empty_response_tokens, over_length.

        Errors: GroupError for a long group where `on_overlong` is "raise"; ValueError for messages without a chat
        template.
        """
        for start in range(0, len(groups), _CHUNK):
            rendered = [self._render(group) for group in groups[start : start + _CHUNK]]
            texts = [text for each in rendered if isinstance(each, Rendering) for text in each.texts]
            encoded = iter(self._tokenizer.encode_batch(texts, add_special_tokens=self._special_tokens))
            for number, each in enumerate(rendered, start):
                if not isinstance(each, Rendering):
                    yield "template"
                    continue
                responses = [self._tokens(next(encoded), boundary) for boundary in each.boundaries]
                found = [response for response in responses if response is not None]
                yield self._fit(found, number) if len(found) == len(responses) else "empty_response_tokens"

    def encode_prompts(self, prompts: Sequence[PromptText], longest: int | None) -> Iterator[np.ndarray | str]:
        """The prompts as `encode` gives them before a response, in order; a string is the reason why one is refused.

        Args:
            prompts: what shall be answered.
            longest: tokens of a prompt, at most; a longer one is cut at its beginning where `on_overlong` is
                "truncate_prompt", and refused where not.

        Reasons: empty, template (it refuses the conversation), over_length.

        Errors: ValueError for messages without a chat template.
        """
        for start in range(0, len(prompts), _CHUNK):
            chunk = [_no_text(prompt) or self._render_prompt(prompt) for prompt in prompts[start : start + _CHUNK]]
            texts = [text for each in chunk if isinstance(each, Rendering) for text in each.texts]
            encoded = iter(self._tokenizer.encode_batch(texts, add_special_tokens=self._special_tokens))
            for each in chunk:
                yield self._prompt_tokens(next(encoded), longest) if isinstance(each, Rendering) else each

    def _render_prompt(self, prompt: PromptText) -> Rendering | str:
        rendered = self.renderer.render_prompt(prompt if isinstance(prompt, str) else list(prompt))
        return rendered if isinstance(rendered, Rendering) else "template"

    def _prompt_tokens(self, encoding: Any, longest: int | None) -> np.ndarray | str:
        ids = encoding.ids
        # What the tokenizer itself adds at an end would stand between prompt and response.
        ids = ids[: len(ids) - sum(1 for _ in itertools.takewhile(bool, reversed(encoding.special_tokens_mask)))]
        tokens = np.array(ids, dtype=np.int64)
        if len(tokens) == 0:
            return "empty"
        if longest is None or len(tokens) <= longest:
            return tokens
        head = self._leading_specials(tokens)
        if self.options.on_overlong != "truncate_prompt" or longest <= head:
            return "over_length"
        return np.concatenate([tokens[:head], tokens[len(tokens) - (longest - head) :]])

    def _render(self, group: TextGroup) -> Rendering | str:
        prompt = group.prompt if isinstance(group.prompt, str) else list(group.prompt)
        if self.options.paper_text and "summarize" in group.source.lower():
            prompt = _instructed(prompt)
        return self.renderer.render(prompt, [each if isinstance(each, str) else list(each) for each in group.responses])

    def _tokens(self, encoding: Any, boundary: int) -> tuple[np.ndarray, int] | None:
        start = next((place for place, (_, end) in enumerate(encoding.offsets) if end > boundary), None)
        if start is None:
            return None
        ids = encoding.ids
        if self._appended is not None and ids[-1] != self._appended:
            ids = [*ids, self._appended]
        return np.array(ids, dtype=np.int64), start

    def _fit(self, responses: list[tuple[np.ndarray, int]], number: int) -> TokenGroup | str:
        """Cut the prompt's beginning behind leading special tokens, by the same count for all responses."""
        longest = max(len(tokens) for tokens, _ in responses)
        cut = 0 if self.options.max_length is None else max(longest - self.options.max_length, 0)
        if cut == 0:
            return TokenGroup(tuple(tokens for tokens, _ in responses), tuple(start for _, start in responses))
        if self.options.on_overlong == "raise":
            raise GroupError(
                number,
                f"has {longest} tokens and max_length is {self.options.max_length}; raise it, or set on_overlong to "
                "drop or truncate_prompt",
            )
        kept = [self._leading_specials(tokens) for tokens, _ in responses]
        fits = all(head + cut <= start for head, (_, start) in zip(kept, responses, strict=True))
        if self.options.on_overlong == "drop" or not fits:
            return "over_length"
        shortened = tuple(
            np.concatenate([tokens[:head], tokens[head + cut :]])
            for head, (tokens, _) in zip(kept, responses, strict=True)
        )
        return TokenGroup(shortened, tuple(start - cut for _, start in responses), cut)

    def _leading_specials(self, tokens: np.ndarray) -> int:
        """How often the first token stands at the front, if it is a special one."""
        if int(tokens[0]) not in self._special:
            return 0
        others = np.flatnonzero(tokens != tokens[0])
        return int(others[0]) if len(others) else len(tokens)


def _no_text(prompt: PromptText) -> str:
    """The reason "empty" for a prompt that asks nothing."""
    last = prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else ""
    return "" if last.strip() else "empty"


def _instructed(prompt: str | list[Message]) -> str | list[Message]:
    if isinstance(prompt, str):
        return SUMMARIZE + prompt.strip()
    first = next((place for place, message in enumerate(prompt) if message["role"] == "user"), None)
    return [
        message | {"content": SUMMARIZE + message["content"].strip()} if place == first else message
        for place, message in enumerate(prompt)
    ]


def shared_prefix(responses: Sequence[np.ndarray]) -> int:
    """Tokens of the longest common beginning, capped one short of the shortest response."""
    common = responses[0][: min(len(tokens) for tokens in responses) - 1]
    for tokens in responses[1:]:
        differing = np.flatnonzero(common != tokens[: len(common)])
        common = common[: differing[0]] if len(differing) else common
    return len(common)


def cost(group: TokenGroup) -> int:
    """Tokens of a group in a pack, the shared prompt counted once."""
    shared = shared_prefix(group.responses)
    return shared + sum(len(tokens) - shared for tokens in group.responses)


def in_batches(items: Iterable[_Item], size: Callable[[_Item], int], most: int) -> Iterator[list[_Item]]:
    """Items in order, cut where a batch would exceed so many tokens; one that is larger stands alone."""
    held: list[_Item] = []
    tokens = 0
    for item in items:
        needed = size(item)
        if held and tokens + needed > most:
            yield held
            held, tokens = [], 0
        held.append(item)
        tokens += needed
    if held:
        yield held


def pack(groups: Sequence[TokenGroup]) -> GroupBatch:
    """Lay groups end to end; there are no comparisons."""
    parts: dict[str, list[np.ndarray]] = {}
    bounds, prefix, responses, group_N = [0], [], [], []
    place = 0
    for number, group in enumerate(groups):
        shared = shared_prefix(group.responses)
        prompt, first = place, len(prefix)
        _add(parts, input_ids_T=group.responses[0][:shared], positions_T=np.arange(shared))
        place += shared
        bounds.append(place)
        prefix.append(-1)
        for tokens, start in zip(group.responses, group.starts, strict=True):
            own = np.arange(place, place + len(tokens) - shared)
            where = np.concatenate([np.arange(prompt, prompt + shared), own])
            scored = np.arange(max(start, 1), len(tokens))
            _add(parts, input_ids_T=tokens[shared:], positions_T=np.arange(shared, len(tokens)))
            _add(parts, source_L=where[scored - 1], target_L=tokens[scored], last_N=own[-1:])
            _add(parts, response_L=np.full(len(scored), len(group_N)))
            place += len(own)
            bounds.append(place)
            responses.append(len(prefix))
            prefix.append(first)
            group_N.append(number)
    arrays = {name: np.concatenate(each).astype(np.int64) for name, each in parts.items()}
    arrays |= {"bounds": np.array(bounds), "prefix": np.array(prefix), "responses": np.array(responses)}
    arrays |= {"group_N": np.array(group_N), "count_G": np.ones(len(groups), np.float32)}
    arrays |= {name: np.zeros(0, np.int64) for name in ("better_C", "worse_C", "group_C", "row_C")}
    arrays |= {name: np.zeros(0, np.float32) for name in ("label_C", "margin_C", "weight_C")}
    return GroupBatch.from_arrays(arrays, groups_in_step=len(groups))


def _add(parts: dict[str, list[np.ndarray]], **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        parts.setdefault(name, []).append(array)
