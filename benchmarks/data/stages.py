"""Stages on their own, in this process: encoding, order and deal, token slots, batches.

Times are processor seconds of this process; sides alternate, and begin in turns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from benchmarks.data import material
from benchmarks.data.ours_job import responses
from benchmarks.data.trl_job import loader, prepared
from benchmarks.train.report import Row
from grmlight._data_rs import Encoder, epoch_order, pack_bins, read_pairs
from grmlight.data import GroupLoader, prepare
from grmlight.data.render import Renderer, Rendering


def encode_rows(_: Path, pairs: int = 10_000, chunk: int = 1_000) -> list[Row]:
    """Groups, prompt once, against the same engine encoding each conversation whole; ids are asserted equal."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    name = material.tokenizer()
    loaded = AutoTokenizer.from_pretrained(name)
    text = loaded.backend_tokenizer.to_str()
    renderer, rows = Renderer(loaded), read_pairs(str(material.pairs(pairs)), {})
    groups = [renderer.render(*rows.group(index)) for index in range(len(rows))]
    rendered = [group for group in groups if isinstance(group, Rendering)]
    assert len(rendered) == len(groups)
    ours, joint = Encoder(text, {}), Encoder(text, {})
    assert ours.prompt_once, ours.why_reference
    seconds: list[tuple[float, float]] = []
    for place in range(0, len(groups), chunk):
        part = rendered[place : place + chunk]
        texts, boundaries = [each.texts for each in part], [each.boundaries for each in part]
        flat = [text for each in texts for text in each]
        sides: list[Callable[[], Any]] = [
            lambda: ours.encode_groups(texts, boundaries, place),  # noqa: B023 - called in this round
            lambda: joint.encode(flat),  # noqa: B023
        ]
        (once, whole), taken = _alternated(sides, place // chunk)
        ids = [tokens for group in once for tokens, _ in group[1]]
        assert np.array_equal(np.concatenate(ids), whole[0])
        seconds.append(taken)
    # The first chunk loads what the others find in memory, and is checked most.
    ratio = median(b / a for a, b in seconds[1:])
    each = median(a for a, _ in seconds[1:]) / chunk
    return [
        Row(f"encoding against joint encoding on {ours.engine}", ratio, "x", 1.15, 1.25),
        Row("encoding", 1e6 * each, "us a pair"),
    ]


def order_rows(_: Path, pairs: int = 1_000_000, step: int = 64, rounds: int = 5) -> list[Row]:
    """An epoch's order and all deals, as the loader of one rank of eight goes through them."""
    costs = _costs(pairs)
    store: Any = _Costs(costs)
    both, orders, bins = [], [], []
    for epoch in range(rounds):
        seconds, order = _timed(lambda: epoch_order(pairs, 0, epoch))  # noqa: B023 - called in this round
        orders.append(seconds)
        seconds, _found = _timed(lambda: sum(1 for _ in GroupLoader(store, step, 3, 8, 1, epoch).deals()))  # noqa: B023
        both.append(seconds)
        seconds, _found = _timed(lambda: pack_bins(costs[order], 4096, 4_000, 0, epoch))  # noqa: B023
        bins.append(seconds)
    per_pair = [1e9 * median(each) / pairs for each in (both, orders, bins)]
    return [
        Row(f"order and deal, {pairs:,} pairs, steps of {step}", per_pair[0], "ns a pair", 100, 50, at_most=True),
        Row("the order alone", per_pair[1], "ns a pair"),
        Row("bins of 4,096 tokens, windows of 4,000 pairs", per_pair[2], "ns a pair"),
    ]


def slot_rows(folder: Path, pairs: int = 20_000) -> list[Row]:
    """Token slots a pair: TRL's padded batches in random order, our packs, and bins."""
    store = prepare(str(material.pairs(pairs)), material.tokenizer(), material.OPTIONS, folder / "store").store
    lengths = np.array([_lengths(batch.layout) for batch in GroupLoader(store, 1)])
    draw = np.random.default_rng(0).permutation(len(lengths))
    costs = store.costs
    _, bounds = pack_bins(costs[draw], 4096, 4_000, 0, 0)
    packed, binned = costs.mean(), (len(bounds) - 1) * 4096 / len(costs)
    padded = {
        size: sum(2 * len(part) * part.max() for part in np.split(lengths[draw], range(size, len(draw), size)))
        / len(draw)
        for size in (8, 64)
    }
    return [
        Row("token slots, TRL's over our packs', batch 8", padded[8] / packed, "x", 2.7, 2.8),
        Row("token slots, TRL's over our packs', batch 64", padded[64] / packed, "x", 3.6, 4),
        Row("token slots, TRL's over bins' of 4,096, batch 8", padded[8] / binned, "x"),
        Row("token slots, TRL's over bins' of 4,096, batch 64", padded[64] / binned, "x"),
        Row("bins of 4,096, windows of 4,000 pairs, fill", packed / binned, "", 0.995, 0.997),
        Row("token slots of our packs", float(packed), "a pair"),
    ]


def fetch_rows(folder: Path, pairs: int = 2_000, rounds: int = 7) -> list[Row]:
    """Batches of eight pairs against rows of `datasets` and TRL's collator; ids are asserted equal."""
    name = material.tokenizer()
    source = material.pairs(pairs)
    loaded = AutoTokenizer.from_pretrained(name)
    data = prepared(str(source), loaded, folder)
    store = prepare(str(source), name, material.OPTIONS, folder / "store").store
    ids = [response for batch in GroupLoader(store, 8) for response in responses(batch)]
    assert ids == [row[side] for row in data for side in ("chosen_ids", "rejected_ids")]  # pyright: ignore
    seconds = []
    for number in range(rounds):
        ours, theirs = GroupLoader(store, 8, seed=number), loader(data, loaded.pad_token_id)
        found, taken = _alternated([lambda: sum(1 for _ in ours), lambda: sum(1 for _ in theirs)], number)  # noqa: B023
        assert found[0] == found[1]
        seconds.append(taken)
    return [
        Row("a batch against rows of datasets and TRL's collator", median(b / a for a, b in seconds), "x", 25, 50),
        Row("a batch of ours", 1e6 * median(a for a, _ in seconds) / len(store), "us a pair"),
        Row("a batch of TRL's", 1e6 * median(b for _, b in seconds) / len(store), "us a pair"),
    ]


class _Costs:
    """What a loader asks of a store before it packs."""

    def __init__(self, costs: np.ndarray) -> None:
        self.costs = costs

    def __len__(self) -> int:
        return len(self.costs)


def _costs(pairs: int) -> np.ndarray:
    """Tokens of pairs with the material's distribution, roughly."""
    return np.clip(850 * np.exp(0.6 * np.random.default_rng(0).standard_normal(pairs)), 20, 4_000).astype(np.int64)


def _lengths(layout: Any) -> list[int]:
    ends = [end - start for start, end in pairwise(layout.bounds)]
    return [ends[layout.prefix[response]] + ends[response] for response in layout.responses]


def _alternated(sides: list[Callable[[], Any]], round_number: int) -> tuple[list[Any], tuple[float, float]]:
    """Results and seconds of two sides; in odd rounds the second one begins."""
    order = (0, 1) if round_number % 2 == 0 else (1, 0)
    done = {side: _timed(sides[side]) for side in order}
    return [done[0][1], done[1][1]], (done[0][0], done[1][0])


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    found = work()
    return time.process_time() - began, found
