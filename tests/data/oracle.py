"""read_pairs once more: slow, in plain Python, and obviously right."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from collections import defaultdict
from typing import Any

from tests.data.oracle_plan import flips

SUMMARIZE = "Generate one-sentence summary for the following post: "


class RefusedError(Exception):
    """A row that is no usable pair."""


@dataclasses.dataclass
class Pair:
    row: int
    id: str
    source: str | None
    category: str | None
    prompt: Any
    responses: list[Any]
    margin: float
    weight: float
    label: float
    flipped: bool = False


@dataclasses.dataclass
class Reading:
    rows: int = 0
    skipped: int = 0
    refused: dict[str, list[int]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    noted: dict[str, list[int]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    pairs: list[Pair] = dataclasses.field(default_factory=list)


def read(data: bytes, **options) -> Reading:
    """Everything in these lines, by the options of `read_pairs` (the policy "raise" aside)."""
    reading, seen, usable = Reading(), set(), 0
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), options.get("first_row", 1)):
        if not line.strip(b" \t\r\x0c"):
            continue
        reading.rows += 1
        try:
            pair = normalize(parse(line), number, options.get("paper_text", False))
            check(pair)
            finding = repeated(pair, seen, options)
        except RefusedError as reason:
            reading.refused[str(reason)].append(number)
            continue
        seen.add(repr((pair.prompt, pair.responses)))
        usable += 1
        if (usable - 1) % options.get("stride", 1):
            reading.skipped += 1
            continue
        if finding:
            reading.noted[finding].append(number)
        if flips(options.get("flip", 0), options.get("flip_seed", 0), number):
            pair.responses.reverse()
            pair.flipped = True
        reading.pairs.append(pair)
    return reading


def repeated(pair: Pair, seen: set[str], options: dict[str, Any]) -> str | None:
    finding = None
    if repr((pair.prompt, pair.responses)) in seen:
        finding = "duplicate"
    elif repr((pair.prompt, pair.responses[::-1])) in seen:
        finding = "contradiction"
    if finding and options.get(f"on_{finding}", "keep") == "drop":
        raise RefusedError(finding)
    return finding


def parse(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
        if depth(text) > 127:
            raise RefusedError("invalid_json")
        row = json.loads(text, parse_float=parse_number, parse_int=parse_number, parse_constant=lambda _: {})
        json.dumps(row, ensure_ascii=False).encode()
    except ValueError:
        raise RefusedError("invalid_json") from None
    if not isinstance(row, dict):
        raise RefusedError("invalid_json")
    return row


def parse_number(text: str) -> int | float:
    if float(text) in (float("inf"), float("-inf")):
        raise RefusedError("bad_number")
    is_integer = re.fullmatch(r"-?\d{1,20}", text) and -(2**63) <= int(text) < 2**64 and text != "-0"
    return int(text) if is_integer else float(text)


def depth(text: str) -> int:
    deepest = now = 0
    for bracket in re.sub(r'"(\\.|[^"\\])*"', "", text):
        now += (bracket in "[{") - (bracket in "]}")
        deepest = max(deepest, now)
    return deepest


def normalize(row: dict[str, Any], number: int, paper_text: bool) -> Pair:
    if not (
        {"chosen", "rejected"} <= row.keys() or {"conv_A", "conv_B", "conv_A_rating", "conv_B_rating"} <= row.keys()
    ):
        raise RefusedError("unknown_columns")
    margin, weight, label = (number_of(row, name) for name in ("margin", "weight", "soft_label"))
    weight = 1.0 if weight is None else weight
    label = 1.0 if label is None else label
    if weight < 0 or not 0 <= label <= 1:
        raise RefusedError("bad_number")
    source = row["source"] if isinstance(row.get("source"), str) else None
    if "chosen" in row and "rejected" in row:
        derived = None
        if number_of(row, "chosen_score") is not None and number_of(row, "rejected_score") is not None:
            derived = float(row["chosen_score"]) - float(row["rejected_score"])
        prompt, responses = explicit(row) if "prompt" in row else implicit(row)
    else:
        prompt, responses, derived = ratings(row, paper_text and source is not None and "summarize" in source.lower())
    margin = margin if margin is not None else derived if derived is not None else 0.0
    return Pair(
        row=number,
        id=id_of(row, number),
        source=source,
        category=row["category"] if isinstance(row.get("category"), str) else None,
        prompt=prompt,
        responses=responses,
        margin=narrow(margin),
        weight=narrow(weight),
        label=narrow(label),
    )


def id_of(row: dict[str, Any], number: int) -> str:
    given = row.get("id")
    return str(given) if isinstance(given, str | int) and not isinstance(given, bool) else str(number)


def number_of(row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError("bad_number")
    return float(value)


def narrow(number: float) -> float:
    try:
        return struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        raise RefusedError("bad_number") from None


def text_of(value: Any) -> str | list[dict[str, str]]:
    return value if isinstance(value, str) else messages_of(value)


def messages_of(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise RefusedError("non_string")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise RefusedError("non_string")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def explicit(row: dict[str, Any]) -> tuple[Any, list[Any]]:
    prompt, chosen, rejected = (text_of(row[name]) for name in ("prompt", "chosen", "rejected"))
    kinds = [isinstance(text, str) for text in (prompt, chosen, rejected)]
    if all(kinds):
        return prompt, [chosen, rejected]
    if kinds == [True, False, False] and all(side and side[0]["role"] != "assistant" for side in (chosen, rejected)):
        return conversations(chosen, rejected)
    if isinstance(prompt, str) and not prompt.strip():
        raise RefusedError("empty")
    sides = [[{"role": "assistant", "content": s}] if isinstance(s, str) else s for s in (chosen, rejected)]
    return ([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt), sides


def implicit(row: dict[str, Any]) -> tuple[Any, list[Any]]:
    chosen, rejected = text_of(row["chosen"]), text_of(row["rejected"])
    if isinstance(chosen, list) and isinstance(rejected, list):
        return conversations(chosen, rejected)
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise RefusedError("non_string")
    if chosen.startswith("\n\nHuman:") and rejected.startswith("\n\nHuman:"):
        return conversations(transcript(chosen), transcript(rejected))
    return "", [chosen, rejected]


def transcript(text: str) -> list[dict[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant):", text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[name], "content": content.removeprefix(" ")}
        for name, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def ratings(row: dict[str, Any], summarize: bool) -> tuple[Any, list[Any], float]:
    ratings = [number_of(row, "conv_A_rating"), number_of(row, "conv_B_rating")]
    if None in ratings:
        raise RefusedError("bad_number")
    sides = [messages_of(row["conv_A"]), messages_of(row["conv_B"])]
    if ratings[0] == ratings[1]:
        raise RefusedError("tie")
    if ratings[0] < ratings[1]:
        sides.reverse()
    for side in sides if summarize else []:
        for message in [message for message in side if message["role"] == "user"][:1]:
            message["content"] = SUMMARIZE + message["content"].strip()
    prompt, responses = conversations(*sides)
    return prompt, responses, abs(ratings[0] - ratings[1])


def conversations(chosen: list[Any], rejected: list[Any]) -> tuple[Any, list[Any]]:
    if not chosen or not rejected:
        raise RefusedError("empty")
    if chosen[:-1] != rejected[:-1]:
        raise RefusedError("prompt_differs")
    return chosen[:-1], [chosen[-1:], rejected[-1:]]


def check(pair: Pair) -> None:
    for response in pair.responses:
        if isinstance(response, list):
            check_turns(pair.prompt, response)
        elif not response.strip():
            raise RefusedError("empty")
    if pair.responses[0] == pair.responses[1]:
        raise RefusedError("identical")


def check_turns(prompt: list[Any], response: list[Any]) -> None:
    if not prompt or not response:
        raise RefusedError("empty")
    roles = "".join({"system": "s", "user": "u", "assistant": "a"}.get(turn["role"], "?") for turn in prompt + response)
    cut = len(prompt)
    if not re.fullmatch("s?(ua)+", roles) or roles[cut - 1] != "u":
        raise RefusedError("role_order")
    if not response[-1]["content"].strip():
        raise RefusedError("empty")
