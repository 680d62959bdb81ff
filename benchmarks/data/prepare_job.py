"""Our preparation alone as a job of `benchmarks.data.jobs`: what threads share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.data.material import OPTIONS
from grmlight.data import prepare


def job(pairs: str, tokenizer: str, folder: Path) -> tuple[int, Callable[[], list[list[int]]]]:
    """See `benchmarks.data.jobs.Job`; there are no batches, so no ids."""
    return len(prepare(pairs, tokenizer, OPTIONS, folder / "store").store), list
