"""Our preparation and loader as a job of `benchmarks.data.jobs`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.data.jobs import BATCH
from benchmarks.data.material import OPTIONS
from grmlight.data import GroupLoader, prepare
from grmlight.data.batch import GroupBatch


def job(pairs: str, tokenizer: str, folder: Path) -> tuple[int, Callable[[], list[list[int]]]]:
    """See `benchmarks.data.jobs.Job`."""
    found = prepare(pairs, tokenizer, OPTIONS, folder / "store")
    for _ in GroupLoader(found.store, BATCH, seed=0):
        pass

    def ids() -> list[list[int]]:
        return [response for batch in GroupLoader(found.store, BATCH) for response in responses(batch)]

    return len(found.store), ids


def responses(batch: GroupBatch) -> list[list[int]]:
    """The token ids of each response of a pack, with its prompt."""
    tokens, layout = batch.input_ids_T.tolist(), batch.layout
    segments = [tokens[start:end] for start, end in zip(layout.bounds, layout.bounds[1:], strict=False)]
    return [segments[layout.prefix[response]] + segments[response] for response in layout.responses]
