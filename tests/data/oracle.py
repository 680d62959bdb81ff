"""The Rust extension once more: slow, in plain Python, and obviously right.

`read` gives what `read_pairs` finds, `write` what a `StoreWriter` puts on the disk (as bytes, file by file), `pack` the
arrays of a batch, `epoch_order`, `flips` and `deal_step` the plan.
"""

from __future__ import annotations

import dataclasses
import json
import os.path
import re
import struct
from collections import defaultdict
from typing import Any

import numpy as np
from tokenizers import Tokenizer

SUMMARIZE = "Generate one-sentence summary for the following post: "
MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


class Refused(Exception):
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


# Reading


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
            finding = repeated(pair, seen)
            if finding and options.get(f"on_{finding}", "keep") == "drop":
                raise Refused(finding)
        except Refused as reason:
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


def repeated(pair: Pair, seen: set[str]) -> str | None:
    if repr((pair.prompt, pair.responses)) in seen:
        return "duplicate"
    return "contradiction" if repr((pair.prompt, pair.responses[::-1])) in seen else None


def parse(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
        if depth(text) > 127:
            raise Refused("invalid_json")
        row = json.loads(text, parse_float=parse_number, parse_int=parse_number, parse_constant=lambda _: {})
        json.dumps(row, ensure_ascii=False).encode()
    except ValueError:
        raise Refused("invalid_json") from None
    if not isinstance(row, dict):
        raise Refused("invalid_json")
    return row


def parse_number(text: str) -> int | float:
    if float(text) in (float("inf"), float("-inf")):
        raise Refused("bad_number")
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
        raise Refused("unknown_columns")
    margin, weight, label = (number_of(row, name) for name in ("margin", "weight", "soft_label"))
    weight = 1.0 if weight is None else weight
    label = 1.0 if label is None else label
    if weight < 0 or not 0 <= label <= 1:
        raise Refused("bad_number")
    source = row["source"] if isinstance(row.get("source"), str) else None
    if "chosen" in row and "rejected" in row:
        derived = None
        if number_of(row, "chosen_score") is not None and number_of(row, "rejected_score") is not None:
            derived = float(row["chosen_score"]) - float(row["rejected_score"])
        prompt, responses = explicit(row) if "prompt" in row else implicit(row)
    else:
        prompt, responses, derived = ratings(row, paper_text and source is not None and "summarize" in source.lower())
    margin = margin if margin is not None else derived if derived is not None else 0.0
    given = row.get("id")
    return Pair(
        row=number,
        id=str(given)
        if isinstance(given, str) or (isinstance(given, int) and given is not True and given is not False)
        else str(number),
        source=source,
        category=row["category"] if isinstance(row.get("category"), str) else None,
        prompt=prompt,
        responses=responses,
        margin=narrow(margin),
        weight=narrow(weight),
        label=narrow(label),
    )


def number_of(row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("bad_number")
    return float(value)


def narrow(number: float) -> float:
    try:
        return struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        raise Refused("bad_number") from None


def text_of(value: Any) -> str | list[dict[str, str]]:
    return value if isinstance(value, str) else messages_of(value)


def messages_of(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise Refused("non_string")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise Refused("non_string")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def explicit(row: dict[str, Any]) -> tuple[Any, list[Any]]:
    prompt, chosen, rejected = (text_of(row[name]) for name in ("prompt", "chosen", "rejected"))
    kinds = [isinstance(text, str) for text in (prompt, chosen, rejected)]
    if all(kinds):
        return prompt, [chosen, rejected]
    if kinds == [True, False, False] and all(side and side[0]["role"] != "assistant" for side in (chosen, rejected)):
        return conversations(chosen, rejected)
    if isinstance(prompt, str) and not prompt.strip():
        raise Refused("empty")
    sides = [[{"role": "assistant", "content": s}] if isinstance(s, str) else s for s in (chosen, rejected)]
    return ([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt), sides


def implicit(row: dict[str, Any]) -> tuple[Any, list[Any]]:
    chosen, rejected = text_of(row["chosen"]), text_of(row["rejected"])
    if isinstance(chosen, list) and isinstance(rejected, list):
        return conversations(chosen, rejected)
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise Refused("non_string")
    if chosen.startswith("\n\nHuman:") and rejected.startswith("\n\nHuman:"):
        return conversations(transcript(chosen), transcript(rejected))
    at = split_point(chosen, rejected)
    return chosen[:at], [chosen[at:], rejected[at:]]


def split_point(chosen: str, rejected: str) -> int:
    """The last place of the common beginning where white space begins in both, each text going on visibly after it."""
    for at in range(len(os.path.commonprefix([chosen, rejected])), 0, -1):
        rests = (chosen[at:], rejected[at:])
        if all(rest[:1].isspace() and rest.strip() for rest in rests) and not chosen[at - 1].isspace():
            return at
    return 0


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
        raise Refused("bad_number")
    sides = [messages_of(row["conv_A"]), messages_of(row["conv_B"])]
    if ratings[0] == ratings[1]:
        raise Refused("tie")
    if ratings[0] < ratings[1]:
        sides.reverse()
    for side in sides if summarize else []:
        for message in [message for message in side if message["role"] == "user"][:1]:
            message["content"] = SUMMARIZE + message["content"].strip()
    prompt, responses = conversations(*sides)
    return prompt, responses, abs(ratings[0] - ratings[1])


def conversations(chosen: list[Any], rejected: list[Any]) -> tuple[Any, list[Any]]:
    if not chosen or not rejected:
        raise Refused("empty")
    if chosen[:-1] != rejected[:-1]:
        raise Refused("prompt_differs")
    return chosen[:-1], [chosen[-1:], rejected[-1:]]


def check(pair: Pair) -> None:
    for response in pair.responses:
        if isinstance(response, list):
            check_turns(pair.prompt, response)
        elif not response.strip():
            raise Refused("empty")
    if pair.responses[0] == pair.responses[1]:
        raise Refused("identical")


def check_turns(prompt: list[Any], response: list[Any]) -> None:
    if not prompt or not response:
        raise Refused("empty")
    roles = "".join({"system": "s", "user": "u", "assistant": "a"}.get(turn["role"], "?") for turn in prompt + response)
    cut = len(prompt)
    if not re.fullmatch("s?(ua)+", roles) or roles[cut - 1] != "u":
        raise Refused("role_order")
    if not response[-1]["content"].strip():
        raise Refused("empty")


# Writing


@dataclasses.dataclass
class Group:
    pair: Pair
    shared: int
    responses: list[list[int]]
    starts: list[int]


@dataclasses.dataclass
class Written:
    groups: list[Group]
    report: dict[str, Any]

    def files(self) -> dict[str, bytes]:
        """The files of the store, byte by byte."""
        tokens, segments, groups, starts, comparisons, rows = [], [0], [0, 0], [], b"", b""
        for count, group in enumerate(self.groups, 1):
            pair = group.pair
            for segment in [group.responses[0][: group.shared], *(ids[group.shared :] for ids in group.responses)]:
                tokens += segment
                segments.append(len(tokens))
            groups += [len(segments) - 1, count]
            starts += group.starts
            comparisons += struct.pack("<QIIfff", pair.row, 0, 1, pair.label, pair.margin, pair.weight)
            names = ("row", "id", "source", "category", "flipped")
            line = json.dumps({name: getattr(pair, name) for name in names}, ensure_ascii=False, separators=(",", ":"))
            rows += line.encode() + b"\n"
        numbers = {"segments.bin": segments, "groups.bin": groups, "starts.bin": starts}
        files = {name: np.array(values, "<u8").tobytes() for name, values in numbers.items()}
        return files | {
            "tokens.bin": np.array(tokens, "<i4").tobytes(),
            "comparisons.bin": comparisons,
            "rows.jsonl": rows,
        }


def write(reading: Reading, tokenizer: Tokenizer, texts: list[Any], boundaries: list[list[int]], **options) -> Written:
    """What a StoreWriter stores of these groups, by its options (the policy "raise" aside)."""
    refused = defaultdict(list, {reason: list(rows) for reason, rows in reading.refused.items()})
    groups, template_errors = [], {}
    for pair, text, starts in zip(reading.pairs, texts, boundaries, strict=False):
        try:
            if isinstance(text, str):
                template_errors[str(pair.row)] = text
                raise Refused("template")
            groups.append(encode(pair, tokenizer, text, starts, **options))
        except Refused as reason:
            refused[str(reason)].append(pair.row)
    used = {group.pair.row for group in groups}
    noted = {finding: [row for row in rows if row in used] for finding, rows in reading.noted.items()}
    report = {
        "rows": reading.rows,
        "used": len(groups),
        "skipped": reading.skipped + len(reading.pairs) - len(texts),
        "refused": {reason: sorted(rows) for reason, rows in refused.items()},
        "noted": {finding: rows for finding, rows in noted.items() if rows},
        "flipped": sum(group.pair.flipped for group in groups),
        "tokens": sum(g.shared + sum(len(ids) - g.shared for ids in g.responses) for g in groups),
        "shared_tokens": sum(group.shared for group in groups),
        "max_tokens": max((len(ids) for group in groups for ids in group.responses), default=0),
        "template_errors": template_errors,
    }
    return Written(groups, report)


def encode(pair: Pair, tokenizer: Tokenizer, texts: list[str], boundaries: list[int], **options) -> Group:
    responses, starts = [], []
    for text, boundary in zip(texts, boundaries, strict=True):
        encoding = tokenizer.encode(text, add_special_tokens=options.get("add_special_tokens", False))
        after = [place for place, (_, end) in enumerate(encoding.offsets) if end > boundary]
        if not after:
            raise Refused("empty_response_tokens")
        append = options.get("append_token")
        appended = [append] if append is not None and encoding.ids[-1] != append else []
        responses.append(encoding.ids + appended)
        starts.append(after[0])
    if responses[0] == responses[1]:
        raise Refused("identical")
    cut = max(map(len, responses)) - (options.get("max_length") or 10**9)
    if cut > 0:
        responses, starts = truncate(tokenizer, responses, starts, cut, options.get("on_overlong", "drop"))
    shortest = min(map(len, responses))
    shared = next(n for n in range(shortest - 1, -1, -1) if responses[0][:n] == responses[1][:n])
    return Group(pair, shared, responses, starts)


def truncate(tokenizer: Tokenizer, responses: Any, starts: Any, cut: int, policy: str) -> tuple[Any, Any]:
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    kept = [int(ids[0] in special) for ids in responses]
    if policy != "truncate_prompt" or any(keep + cut > start for keep, start in zip(kept, starts, strict=True)):
        raise Refused("over_length")
    responses = [ids[:keep] + ids[keep + cut :] for keep, ids in zip(kept, responses, strict=True)]
    if responses[0] == responses[1]:
        raise Refused("identical_after_truncation")
    return responses, [start - cut for start in starts]


# Packing


def pack(groups: list[Group], counts: list[float]) -> dict[str, np.ndarray]:
    """The arrays of a batch."""
    lists: dict[str, list[Any]] = defaultdict(list, {"bounds": [0]})

    def lay(tokens: list[int], first_position: int, prefix: int) -> list[int]:
        start = len(lists["input_ids_T"])
        lists["input_ids_T"] += tokens
        lists["positions_T"] += range(first_position, first_position + len(tokens))
        lists["bounds"].append(start + len(tokens))
        lists["prefix"].append(prefix)
        return list(range(start, start + len(tokens)))

    for place, group in enumerate(groups):
        pair, first = group.pair, len(lists["last_N"])
        prompt_segment = len(lists["prefix"])
        prompt = lay(group.responses[0][: group.shared], 0, -1)
        for tokens, start in zip(group.responses, group.starts, strict=True):
            lists["responses"].append(len(lists["prefix"]))
            where = prompt + lay(tokens[group.shared :], group.shared, prompt_segment)
            for index in range(max(start, 1), len(tokens)):
                lists["source_L"].append(where[index - 1])
                lists["target_L"].append(tokens[index])
                lists["response_L"].append(len(lists["last_N"]))
            lists["last_N"].append(where[-1])
            lists["group_N"].append(place)
        values = {"better_C": first, "worse_C": first + 1, "group_C": place, "row_C": pair.row}
        values |= {"label_C": pair.label, "margin_C": pair.margin, "weight_C": pair.weight}
        for name, value in values.items():
            lists[name].append(value)
        lists["count_G"].append(counts[place])
    floats = {"label_C", "margin_C", "weight_C", "count_G"}
    names = (
        "input_ids_T positions_T bounds prefix responses last_N group_N source_L target_L response_L better_C worse_C"
    )
    names = {*names.split(), "group_C", "row_C", *floats}
    return {name: np.array(lists[name], np.float32 if name in floats else np.int64) for name in names}


# Planning


def mix(bits: int) -> int:
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & MASK
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & MASK
    return bits ^ bits >> 31


def draw(seed: int, domain: int, index: int, number: int) -> int:
    key = mix(mix(seed + GAMMA & MASK) + mix(domain + 2 * GAMMA & MASK) + index * GAMMA & MASK)
    return mix(key + (number + 1) * GAMMA & MASK)


def flips(fraction: float, seed: int, row: int) -> bool:
    return (draw(seed, 1, row, 0) >> 11) / 2**53 < fraction


def epoch_order(groups: int, seed: int, epoch: int) -> list[int]:
    order = list(range(groups))
    for number, place in enumerate(range(groups - 1, 0, -1)):
        other = draw(seed, 0, epoch, number) * (place + 1) >> 64
        order[place], order[other] = order[other], order[place]
    return order


def deal_step(costs: list[int], ranks: int, accumulate: int) -> list[list[tuple[list[int], list[float]]]]:
    def greedy(positions: list[int], bins: int) -> list[list[int]]:
        shares: list[list[int]] = [[] for _ in range(bins)]
        for position in positions:
            min(shares, key=lambda share: (sum(costs[p] for p in share), len(share))).append(position)
        return shares

    cheapest = min(range(len(costs)), key=lambda position: (costs[position], position))
    order = sorted(range(len(costs)), key=lambda position: (-costs[position], position))
    return [
        [(sorted(pack), [1.0] * len(pack)) if pack else ([cheapest], [0.0]) for pack in greedy(share, accumulate)]
        for share in greedy(order, ranks)
    ]
