"""The preparation as one writes it around published wheels, as a job of `benchmarks.data.jobs`: the peer to beat.

It gives what ours gives for these pairs: the findings counted, the responses' longest common token prefix stored once,
arrays on disk, and batches with the same fields. It is exact for this material alone: ChatML, whose special tokens are
before each response, and responses without white space at their beginnings. Its engine is that of the environment's
GRMLIGHT_BENCH_ENGINE, see `benchmarks.data.engines`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import torch

from benchmarks.data.jobs import BATCH

MOST = 2048
_CHUNK = 1000


def job(pairs: str, tokenizer: str, folder: Path) -> tuple[int, Callable[[], list[list[int]]]]:
    """See `benchmarks.data.jobs.Job`."""
    prepare(pairs, encoder(f"{tokenizer}/tokenizer.json"), folder)
    data = Arrays(folder)
    order = np.random.default_rng(0).permutation(len(data))
    for start in range(0, len(order), BATCH):
        data.batch(order[start : start + BATCH])
    return len(data), data.responses


def encoder(path: str) -> Callable[[list[str]], tuple[np.ndarray, np.ndarray]]:
    """Texts to their ids end to end, and how many each has."""
    if os.environ["GRMLIGHT_BENCH_ENGINE"] == "fastokens":
        from fastokens._native import Tokenizer  # pyright: ignore[reportMissingImports]

        fast = Tokenizer.from_file(path)

        def encode_flat(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
            ids, ends = fast.encode_batch_flat(texts)
            return np.frombuffer(ids, np.uint32).view(np.int32), np.diff(
                np.frombuffer(ends, np.uint64).astype(np.int64)
            )

        return encode_flat
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(path)

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found: list[Any] = made.encode_batch(texts, add_special_tokens=False)
        # tokenizers before 1.0 has lists alone.
        arrays = [each.ids_array if hasattr(each, "ids_array") else np.array(each.ids, np.uint32) for each in found]
        ids = np.concatenate(arrays).view(np.int32)
        return ids, np.array([len(each) for each in found], np.int64)

    return encode


def prepare(pairs: str, encode: Callable[[list[str]], tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    """Rows to the arrays of `Arrays`, and the findings."""
    read = pyarrow.json.ReadOptions(use_threads=False, block_size=1 << 23)
    table = pyarrow.json.read_json(pairs, read_options=read)
    seen: set[tuple[str, str, str]] = set()
    findings: dict[str, list[int]] = {}
    place, row = 0, 0
    parts: dict[str, list[np.ndarray]] = {"segments": [np.zeros(1, np.int64)], "starts": [], "rows": []}
    with (folder / "tokens.bin").open("wb") as file:
        for start in range(0, len(table), _CHUNK):
            texts, rows = [], []
            for prompt, chosen, rejected in _chunk(table.slice(start, _CHUNK)):
                row += 1
                if reason := _fault(prompt, chosen, rejected):
                    findings.setdefault(reason, []).append(row)
                    continue
                if (prompt, rejected, chosen) in seen:
                    findings.setdefault("contradiction", []).append(row)
                if (prompt, chosen, rejected) in seen:
                    findings.setdefault("duplicate", []).append(row)
                seen.add((prompt, chosen, rejected))
                texts += [
                    prompt + "<|im_start|>assistant\n",
                    chosen + "<|im_end|>\n",
                    rejected + "<|im_end|>\n",
                ]
                rows.append(row)
            if not rows:
                continue
            tokens, segments, starts, kept = _share(*encode(texts), findings, np.array(rows))
            tokens.tofile(file)
            parts["segments"].append(place + segments)
            parts["starts"].append(starts)
            parts["rows"].append(kept)
            place += len(tokens)
    for name, each in parts.items():
        np.save(folder / f"{name}.npy", np.concatenate(each))
    count = sum(map(len, parts["rows"]))
    comparison = np.dtype([("row", "<u8"), ("better", "<u4"), ("worse", "<u4"), ("numbers", "<f4", 3)])
    comparisons = np.zeros(count, comparison)
    comparisons["row"], comparisons["worse"], comparisons["numbers"] = np.concatenate(parts["rows"]), 1, (1, 0, 1)
    np.save(folder / "comparisons.npy", comparisons)
    (folder / "report.json").write_text(json.dumps({"rows": row, "used": count, "findings": findings}))


def _chunk(table: pa.Table) -> Iterator[tuple[str, str, str]]:
    """Rendered prompts, and the contents of both responses."""
    sides = [_messages(table["prompt"]), _messages(table["chosen"]), _messages(table["rejected"])]
    for (prompt_roles, prompt), (_, chosen), (_, rejected) in zip(*sides, strict=True):
        turns = zip(prompt_roles, prompt, strict=True)
        yield "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns), chosen[0], rejected[0]


def _messages(column: pa.ChunkedArray) -> Iterator[tuple[list[str], list[str]]]:
    array = column.combine_chunks()
    messages, ends = array.flatten(), np.cumsum(array.value_lengths().to_numpy()).tolist()
    roles, contents = messages.field("role").to_pylist(), messages.field("content").to_pylist()
    start = 0
    for end in ends:
        yield roles[start:end], contents[start:end]
        start = end


def _fault(prompt: str, chosen: str, rejected: str) -> str | None:
    if not prompt or not chosen.strip() or not rejected.strip():
        return "empty"
    return "identical" if chosen == rejected else None


def _share(
    ids: np.ndarray, lengths: np.ndarray, findings: dict[str, list[int]], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What is stored of pairs whose prompt, chosen and rejected tokens lie end to end."""
    prompt, chosen, rejected = lengths.reshape(-1, 3).T
    starts = np.cumsum(lengths).reshape(-1, 3) - lengths.reshape(-1, 3)
    more = np.zeros(len(prompt), np.int64)
    most = np.minimum(chosen, rejected) - 1
    for pair in np.flatnonzero(ids[starts[:, 1]] == ids[starts[:, 2]]):
        one, other = (ids[starts[pair, side] : starts[pair, side] + most[pair]] for side in (1, 2))
        differing = np.flatnonzero(one != other)
        more[pair] = differing[0] if len(differing) else most[pair]
    short = prompt + np.maximum(chosen, rejected) <= MOST
    findings.setdefault("over_length", []).extend(rows[~short].tolist())
    keep = np.repeat(short, prompt + chosen + rejected)
    for pair in np.flatnonzero(more):
        keep[starts[pair, 2] : starts[pair, 2] + more[pair]] = False
    segments = np.stack([prompt + more, chosen - more, rejected - more], 1)[short]
    return ids[keep], np.cumsum(segments.reshape(-1)), prompt[short], rows[short]


class Arrays:
    """What `prepare` wrote: tokens, where each pair's prompt, chosen and rejected end, the first scored tokens."""

    def __init__(self, folder: Path) -> None:
        self.tokens = np.memmap(folder / "tokens.bin", np.int32, "r")
        self.segments = np.load(folder / "segments.npy", mmap_mode="r")
        self.starts = np.load(folder / "starts.npy", mmap_mode="r")
        self.comparisons = np.load(folder / "comparisons.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.starts)

    def responses(self) -> list[list[int]]:
        """The ids of all responses with their prompts."""
        cuts = [self.tokens[a:b].tolist() for a, b in zip(self.segments, self.segments[1:], strict=False)]
        return [cuts[at - at % 3] + cuts[at] for at in range(len(cuts)) if at % 3]

    def batch(self, pairs: np.ndarray) -> dict[str, torch.Tensor]:
        """Pairs end to end, with the fields of a GroupBatch."""
        places = self.segments[(3 * pairs[:, None] + np.arange(4)).reshape(-1)].reshape(-1, 4)
        tokens = np.concatenate([self.tokens[start:end] for start, end in places[:, [0, 3]].tolist()]).astype(np.int64)
        lengths = np.diff(places, axis=1)
        ends = np.cumsum(lengths.reshape(-1)).reshape(-1, 3)
        begins = ends - lengths
        shared, first = lengths[:, :1], self.starts[pairs][:, None]
        origin = begins - np.concatenate([np.zeros_like(shared), shared, shared], 1)
        places_T = np.arange(len(tokens))
        # A response's scored tokens may begin in the shared part, where both begin alike.
        scored = (shared + lengths[:, 1:] - first).reshape(-1)
        response_L = np.repeat(np.arange(len(scored)), scored)
        within = np.arange(len(response_L)) - np.repeat(np.cumsum(scored) - scored, scored)
        position_L = within + np.repeat(np.repeat(first, 2), scored)
        shared_L = np.repeat(np.repeat(shared, 2), scored)
        prompt_L = np.repeat(np.repeat(begins[:, 0], 2), scored)
        own_L = np.repeat(origin[:, 1:].reshape(-1), scored)
        target_L = position_L + np.where(position_L < shared_L, prompt_L, own_L)
        source_L = position_L - 1 + np.where(position_L - 1 < shared_L, prompt_L, own_L)
        comparisons = self.comparisons[pairs]
        count = len(pairs)
        arrays = {
            "input_ids_T": tokens,
            "positions_T": places_T - np.repeat(origin.reshape(-1), lengths.reshape(-1)),
            "bounds": np.concatenate([[0], ends.reshape(-1)]),
            "last_N": ends[:, 1:].reshape(-1) - 1,
            "group_N": np.arange(2 * count) // 2,
            "source_L": source_L,
            "target_L": tokens[target_L],
            "response_L": response_L,
            "better_C": np.arange(0, 2 * count, 2),
            "worse_C": np.arange(1, 2 * count, 2),
            "group_C": np.arange(count),
            "row_C": comparisons["row"].astype(np.int64),
            "numbers_C": np.ascontiguousarray(comparisons["numbers"]),
            "chosen_L": np.flatnonzero(response_L % 2 == 0),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
