"""Chat templates and conversations to try them on."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

WRITTEN = Path(__file__).parent / "templates"
# What templates look for in messages, white space of all kinds, and what looks like a template.
PIECES = [
    *[
        "",
        " ",
        "\n",
        "\t\x1c\x85\u3000",
        "words",
        "two words",
        "\nled",
        "trailed\n\n",
        "a\r\nb",
        "x" * 60,
        "é\u0301 日本 𝄞",
        "\x00",
    ],
    *[
        "{{ messages }}",
        "{% if %}",
        "{#",
        "'\"\\",
        "\\n",
        "<s>",
        "</s>",
        "<|im_end|>\n",
        "[INST]",
        "<end_of_turn>",
        "</n>&amp;<b>",
    ],
    *[
        "</think>",
        "<think>why</think>so",
        "<think>\n\n</think>\n\nso",
        "<tool_response>x</tool_response>",
        "<tool_call>",
    ],
    *["system", "user", "assistant", "model", "tool", "<|channel|>final", "<|START_THINKING|>", "None", "true"],
]


def shipped() -> list[Path]:
    """The chat templates of installed packages."""
    found = importlib.util.find_spec("trl")
    folders = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    return sorted(path for folder in folders for path in (folder / "chat_templates").glob("*.jinja"))


def written() -> list[Path]:
    return sorted(WRITTEN.glob("*.jinja"))


def conversation(chance: random.Random) -> list[dict[str, str]]:
    """Two to seven messages, half of them in an order that no template refuses."""
    turns = chance.randint(2, 7)
    orderly = [{"role": ["user", "assistant"][turn % 2], "content": content(chance)} for turn in range(turns)]
    if chance.random() < 0.3:
        orderly[:0] = [{"role": "system", "content": content(chance)}]
    if chance.random() < 0.5:
        return orderly
    roles = ["system", "user", "user", "assistant", "assistant", "tool", "critic"]
    return [{"role": chance.choice(roles), "content": content(chance)} for _ in range(turns)]


def content(chance: random.Random) -> str:
    if chance.random() < 0.5:
        return "ordinary words, " * chance.randint(1, 3) + chance.choice(["at the end.", "\n", " "])
    return "".join(chance.choices(PIECES, k=chance.randint(0, 3)))


def group(chance: random.Random) -> tuple[Any, list[Any]]:
    """A prompt and its responses, as text or as messages."""
    if chance.random() < 0.2:
        return content(chance) or "why", [content(chance), content(chance)]
    prompt = conversation(chance)[:-1]
    if chance.random() < 0.2:
        return prompt, [content(chance), conversation(chance)]
    return prompt, [[{"role": "assistant", "content": content(chance)}] for _ in range(2)]
