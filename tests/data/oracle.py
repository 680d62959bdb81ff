"""read_pairs once more: slow, in plain Python, and obviously right."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
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
    """A group: of a pair or of a ranking.

    `scores` orders the responses, the higher the better; `label` is the probability that the higher score is better,
    `ties` tells whether equal ones are compared. `margin` is by how much the side that the label prefers is ahead.
    """

    row: int
    id: str
    source: str | None
    category: str | None
    capability: str | None
    prompt: Any
    responses: list[Any]
    scores: list[float]
    margin: float | None
    by_score: bool
    weight: float
    label: float
    ties: bool
    flipped: bool = False

    def comparisons(self) -> list[tuple[int, int, float, float]]:
        """Better, worse, label and margin of each two responses."""
        found = []
        for left, right in itertools.combinations(range(len(self.responses)), 2):
            margin = abs(self.scores[left] - self.scores[right]) if self.by_score else 0.0
            margin = -margin if margin and self.label < 0.5 else margin  # the other side is the better one
            margin = self.margin if self.margin is not None else margin
            if self.scores[left] > self.scores[right]:
                found.append((left, right, self.label, narrow(margin)))
            elif self.scores[left] < self.scores[right]:
                found.append((right, left, self.label, narrow(margin)))
            elif self.ties:
                found.append((left, right, 0.5, 0.0))
        return found

    def flip(self) -> None:
        self.responses.reverse()
        self.scores = [-score for score in reversed(self.scores)]
        self.flipped = True

    def said(self) -> list[str]:
        """What is remembered of each comparison: the prompt, the capability, and which response is better."""
        remembered = []
        for better, worse, label, _ in self.comparisons():
            sides = [repr(self.responses[better]), repr(self.responses[worse])]
            sides = sorted(sides) if label == 0.5 else sides if label > 0.5 else sides[::-1]
            remembered.append(repr((self.prompt, self.capability, label == 0.5, sides)))
        return remembered

    def swapped(self) -> list[str]:
        other = dataclasses.replace(self, scores=[-score for score in self.scores])
        return [said for said, (*_, label, _) in zip(other.said(), other.comparisons(), strict=True) if label != 0.5]


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
            pair = normalize(parse(line), number, options)
            check(pair)
            finding = repeated(pair, seen, options)
        except RefusedError as reason:
            reading.refused[str(reason)].append(number)
            continue
        seen.update(pair.said())
        usable += 1
        if (usable - 1) % options.get("stride", 1):
            reading.skipped += 1
            continue
        if finding:
            reading.noted[finding].append(number)
        if not pair.ties and len(set(pair.scores)) < len(pair.scores):
            reading.noted["tie"].append(number)
        if flips(options.get("flip", 0), options.get("flip_seed", 0), number):
            pair.flip()
        reading.pairs.append(pair)
    return reading


def repeated(pair: Pair, seen: set[str], options: dict[str, Any]) -> str | None:
    finding = None
    if seen.issuperset(pair.said()):
        finding = "duplicate"
    elif not seen.isdisjoint(pair.swapped()):
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


FORMATS = [{"chosen", "rejected"}, {"conv_A", "conv_B", "conv_A_rating", "conv_B_rating"}]
RANKINGS = [{"prompt", "responses", "ratings"}, {"prompt", "responses", "ranks"}]


def normalize(row: dict[str, Any], number: int, options: dict[str, Any]) -> Pair:
    unasked = "prompt" in row and row["prompt"] is None
    filled = {name: value for name, value in row.items() if value is not None}
    if any(columns <= filled.keys() for columns in FORMATS + RANKINGS):
        row = filled
    if not any(columns <= row.keys() for columns in FORMATS + RANKINGS):
        raise RefusedError("unknown_columns")
    margin, weight, label = (number_of(row, name) for name in ("margin", "weight", "soft_label"))
    weight = 1.0 if weight is None else weight
    label = 1.0 if label is None else label
    if weight < 0 or not 0 <= label <= 1:
        raise RefusedError("bad_number")
    source = row["source"] if isinstance(row.get("source"), str) else None
    keep, by_score, scores = options.get("on_tie", "drop") == "keep", True, [1.0, 0.0]
    if FORMATS[0] <= row.keys():
        by_score, given = False, [number_of(row, name) for name in ("chosen_score", "rejected_score")]
        prompt, responses = explicit(row) if "prompt" in row else implicit(row, unasked)
        if None not in given and margin is None:  # chosen is the better one whatever the scores say
            margin = given[0] - given[1] if label >= 0.5 else given[1] - given[0]
    elif FORMATS[1] <= row.keys():
        summarize = options.get("paper_text", False) and source is not None and "summarize" in source.lower()
        prompt, responses, scores = ratings(row, summarize, keep)
    else:
        prompt, responses, scores, by_score = ranking(row, keep)
    pair = Pair(
        row=number,
        id=id_of(row, number),
        source=source,
        category=row["category"] if isinstance(row.get("category"), str) else None,
        capability=row["capability"] if isinstance(row.get("capability"), str) and row["capability"] else None,
        prompt=prompt,
        responses=responses,
        scores=scores,
        margin=margin,
        by_score=by_score,
        weight=narrow(weight),
        label=narrow(label),
        ties=keep,
    )
    pair.comparisons()  # which refuses margins out of range
    return pair


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
    if math.isinf(number):
        raise RefusedError("bad_number")
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
    return answers(*(text_of(row[name]) for name in ("prompt", "chosen", "rejected")))


def answers(prompt: Any, *responses: Any) -> tuple[Any, list[Any]]:
    kinds = [isinstance(text, str) for text in (prompt, *responses)]
    if all(kinds):
        return prompt, list(responses)
    whole = [not isinstance(side, str) and side and side[0]["role"] != "assistant" for side in responses]
    if isinstance(prompt, str) and all(whole):
        return conversations(*responses)
    if isinstance(prompt, str) and not prompt.strip():
        raise RefusedError("empty")
    sides = [[{"role": "assistant", "content": s}] if isinstance(s, str) else s for s in responses]
    return ([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt), sides


def ranking(row: dict[str, Any], keep: bool) -> tuple[Any, list[Any], list[float], bool]:
    if not isinstance(row["responses"], list):
        raise RefusedError("non_string")
    if not 2 <= len(row["responses"]) <= 256:
        raise RefusedError("response_count")
    prompt, *responses = (text_of(value) for value in (row["prompt"], *row["responses"]))
    rated, ranked = (numbers_of(row.get(name), len(responses)) for name in ("ratings", "ranks"))
    if rated is None and ranked is None:
        raise RefusedError("bad_number")
    scores = rated if rated is not None else [-rank for rank in ranked]
    for left, right in itertools.permutations(range(len(responses)), 2):
        if ranked is not None and (scores[left] > scores[right]) != (ranked[left] < ranked[right]):
            raise RefusedError("ranking_differs")
    prompt, responses = answers(prompt, *responses)
    if len(set(scores)) == 1 and not keep:
        raise RefusedError("tie")
    return prompt, responses, scores, rated is not None


def numbers_of(values: Any, count: int) -> list[float] | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != count or any(value is None for value in values):
        raise RefusedError("bad_number")
    return [number_of({"each": value}, "each") for value in values]


def implicit(row: dict[str, Any], unasked: bool) -> tuple[Any, list[Any]]:
    chosen, rejected = text_of(row["chosen"]), text_of(row["rejected"])
    if isinstance(chosen, list) and isinstance(rejected, list):
        return conversations(chosen, rejected)
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise RefusedError("non_string")
    if chosen.startswith("\n\nHuman:") and rejected.startswith("\n\nHuman:"):
        return conversations(transcript(chosen), transcript(rejected))
    if unasked:
        raise RefusedError("non_string")
    return "", [chosen, rejected]


def transcript(text: str) -> list[dict[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant):", text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[name], "content": content.removeprefix(" ")}
        for name, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def ratings(row: dict[str, Any], summarize: bool, keep: bool) -> tuple[Any, list[Any], list[float]]:
    ratings = [number_of(row, "conv_A_rating"), number_of(row, "conv_B_rating")]
    if None in ratings:
        raise RefusedError("bad_number")
    sides = [messages_of(row["conv_A"]), messages_of(row["conv_B"])]
    if ratings[0] == ratings[1] and not keep:
        raise RefusedError("tie")
    if ratings[0] < ratings[1]:
        sides.reverse()
        ratings.reverse()
    for side in sides if summarize else []:
        for message in [message for message in side if message["role"] == "user"][:1]:
            message["content"] = SUMMARIZE + message["content"].strip()
    return *conversations(*sides), ratings


def conversations(*sides: list[Any]) -> tuple[Any, list[Any]]:
    if not all(sides):
        raise RefusedError("empty")
    if any(side[:-1] != sides[0][:-1] for side in sides):
        raise RefusedError("prompt_differs")
    return sides[0][:-1], [side[-1:] for side in sides]


def check(pair: Pair) -> None:
    for response in pair.responses:
        if isinstance(response, list):
            check_turns(pair.prompt, response)
        elif not response.strip():
            raise RefusedError("empty")
    if any(left == right for left, right in itertools.combinations(pair.responses, 2)):
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
