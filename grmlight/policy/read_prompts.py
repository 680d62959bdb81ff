"""Prompts from files: JSON lines, files of pairs, lines of text."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grmlight._data_rs import read_pairs
from grmlight.data.files import cache_directory
from grmlight.data.source import as_json_lines
from grmlight.data.texts import PromptText

logger = logging.getLogger("grmlight")

_FORMS = "give JSON lines with `prompt` (text, or messages that end with a user's), pairs, or a .txt file of lines"
_PAIRS = frozenset({"chosen", "responses", "conv_A"})
"""Columns by which a file of pairs or rankings is known; its rows' prompts are what counts."""


@dataclasses.dataclass(frozen=True)
class NumberedPrompt:
    """A prompt.

    Attributes:
        row: its row in the source, from 1.
        prompt: text or messages.
    """

    row: int
    prompt: PromptText


def read_prompts(source: str) -> list[PromptText]:
    """All prompts of a source, in its order; one that occurs several times stays so.

    Args:
        source: a file with a prompt a line: JSON lines (.gz too) with `prompt`, or text (.txt); or whatever pairs are
            read from (`grmlight.data.source`), whose prompts these then are.

    Errors: ValueError in one line for what cannot be found or read; names the first row that is no prompt.
    """
    return [each.prompt for each in numbered_prompts(source)]


def numbered_prompts(source: str) -> list[NumberedPrompt]:
    """The same, with their rows."""
    if source.endswith(".txt"):
        found = list(_text_lines(Path(source)))
    else:
        with as_json_lines(source, cache_directory() / "prompts") as path:
            first = next(_rows(path, source), None)
            pairs = first is not None and bool(_PAIRS & first[1].keys())
            found = (
                _of_pairs(path, source)
                if pairs
                else [_prompt(row, entries, source) for row, entries in _rows(path, source)]
            )
    if not found:
        raise ValueError(f"{source}: holds no prompts; {_FORMS}")
    return found


def _text_lines(path: Path) -> Iterator[NumberedPrompt]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text in UTF-8; {_FORMS}") from error
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; check the path") from error
    return (NumberedPrompt(row, line) for row, line in enumerate(lines, 1) if line.strip())


def _rows(path: str, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of JSON lines with their numbers; blank lines count as rows and are none."""
    opener = gzip.open if path.endswith(".gz") else open
    with _readable(source), opener(path, "rb") as file:
        for row, line in enumerate(file, 1):
            if not line.strip():
                continue
            entries = None
            with contextlib.suppress(ValueError):
                entries = json.loads(line)
            if not isinstance(entries, dict):
                raise ValueError(f"{source}: row {row} is no JSON object; {_FORMS}")  # noqa: TRY004
            yield row, entries


@contextlib.contextmanager
def _readable(source: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{source}: is cut off or no gzip file ({error}); copy it again") from error


def _prompt(row: int, entries: dict[str, Any], source: str) -> NumberedPrompt:
    if "prompt" not in entries:
        raise ValueError(f"{source}: row {row} has no `prompt` (its columns: {', '.join(entries) or 'none'}); {_FORMS}")
    prompt = entries["prompt"]
    if _has_lone_surrogate(prompt):
        raise ValueError(f"{source}: row {row} holds half a character (a lone surrogate); write its text anew in UTF-8")
    if isinstance(prompt, str) and prompt.strip():
        return NumberedPrompt(row, prompt)
    if isinstance(prompt, list) and _is_talk(prompt):
        return NumberedPrompt(row, tuple({"role": each["role"], "content": each["content"]} for each in prompt))
    what = "an empty prompt" if prompt in ("", [], None) or isinstance(prompt, str) else "a prompt that is none"
    raise ValueError(f"{source}: row {row} has {what}; {_FORMS}, or leave the row out")


def _has_lone_surrogate(value: Any) -> bool:
    """Whether JSON's escapes spell what is no text in any encoding."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _is_talk(messages: list[Any]) -> bool:
    """Whether these are messages that end with something that a user says."""
    texts = all(
        isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
        for each in messages
    )
    return texts and bool(messages) and messages[-1]["role"] == "user" and bool(messages[-1]["content"].strip())


def _of_pairs(path: str, source: str) -> list[NumberedPrompt]:
    """The prompts of usable pairs and rankings, ties included; how many rows are not usable is said."""
    pairs = read_pairs(path, {"name": source, "on_tie": "keep"})
    found = []
    for index in range(len(pairs)):
        prompt, _ = pairs.group(index)
        if not prompt:
            raise ValueError(f"{source}: row {pairs.row(index)} holds whole texts without a prompt; {_FORMS}")
        found.append(NumberedPrompt(pairs.row(index), prompt if isinstance(prompt, str) else tuple(prompt)))
    refused = sorted(row for rows in pairs.refused.values() for row in rows)
    if refused:
        reasons = ", ".join(f"{len(rows)} {reason.replace('_', ' ')}" for reason, rows in pairs.refused.items())
        logger.warning(
            "%s: %d of %d rows are no usable pairs (%s), the first is row %d; their prompts are left out",
            *(source, len(refused), pairs.rows, reasons, refused[0]),
        )
    return found
