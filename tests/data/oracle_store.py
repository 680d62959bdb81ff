"""StoreWriter and Store.pack once more: slow, in plain Python, and obviously right."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections import defaultdict
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tests.data.oracle import Pair, Reading, RefusedError


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
        for group in self.groups:
            pair = group.pair
            for segment in [group.responses[0][: group.shared], *(ids[group.shared :] for ids in group.responses)]:
                tokens += segment
                segments.append(len(tokens))
            starts += group.starts
            for better, worse, label, margin in pair.comparisons():
                comparisons += struct.pack("<QIIfff", pair.row, better, worse, label, margin, pair.weight)
            groups += [len(segments) - 1, len(comparisons) // 28]
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
        if isinstance(text, str):
            template_errors[str(pair.row)] = text
            refused["template"].append(pair.row)
            continue
        try:
            groups.append(encode(pair, tokenizer, text, starts, **options))
        except RefusedError as reason:
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
        "comparisons": sum(len(group.pair.comparisons()) for group in groups),
        "ties": sum(label == 0.5 for group in groups for *_, label, _ in group.pair.comparisons()),
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
            raise RefusedError("empty_response_tokens")
        append = options.get("append_token")
        appended = [append] if append is not None and encoding.ids[-1] != append else []
        responses.append(encoding.ids + appended)
        starts.append(after[0])
    if len(set(map(tuple, responses))) < len(responses):
        raise RefusedError("identical")
    cut = max(map(len, responses)) - (options.get("max_length") or 10**9)
    if cut > 0:
        responses, starts = truncate(tokenizer, responses, starts, cut, options.get("on_overlong", "drop"))
    shortest = min(map(len, responses))
    shared = next(n for n in range(shortest - 1, -1, -1) if len({tuple(ids[:n]) for ids in responses}) == 1)
    return Group(pair, shared, responses, starts)


def truncate(tokenizer: Tokenizer, responses: Any, starts: Any, cut: int, policy: str) -> tuple[Any, Any]:
    special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    kept = [next(n for n, id_ in enumerate([*ids, None]) if id_ != ids[0]) * (ids[0] in special) for ids in responses]
    if policy != "truncate_prompt" or any(keep + cut > start for keep, start in zip(kept, starts, strict=True)):
        raise RefusedError("over_length")
    responses = [ids[:keep] + ids[keep + cut :] for keep, ids in zip(kept, responses, strict=True)]
    if len(set(map(tuple, responses))) < len(responses):
        raise RefusedError("identical_after_truncation")
    return responses, [start - cut for start in starts]


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
                if any(better == len(lists["last_N"]) - first for better, *_ in pair.comparisons()):
                    lists["chosen_L"].append(len(lists["response_L"]))
                lists["response_L"].append(len(lists["last_N"]))
            lists["last_N"].append(where[-1])
            lists["group_N"].append(place)
        for better, worse, label, margin in pair.comparisons():
            values = {"better_C": first + better, "worse_C": first + worse, "group_C": place, "row_C": pair.row}
            values |= {"label_C": label, "margin_C": margin, "weight_C": pair.weight}
            for name, value in values.items():
                lists[name].append(value)
        lists["count_G"].append(counts[place])
    floats = {"label_C", "margin_C", "weight_C", "count_G"}
    names = (
        "input_ids_T positions_T bounds prefix responses last_N group_N source_L target_L response_L better_C worse_C"
    )
    names = {*names.split(), "chosen_L", "group_C", "row_C", *floats}
    found = {name: np.array(lists[name], np.float32 if name in floats else np.int64) for name in names}
    found["table_S3"] = np.stack([found["bounds"][:-1], found["bounds"][1:], found["prefix"]], axis=1)
    return found
