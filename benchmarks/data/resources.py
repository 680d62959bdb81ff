"""What a preparation takes of the machine: seconds with two threads, and memory as the data grow."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

from benchmarks.data import material
from benchmarks.data.jobs import BATCH, Worker, workers
from benchmarks.train.report import Row


def thread_rows(folder: Path, pairs: int = 20_000, rounds: int = 5) -> list[Row]:
    """Wall seconds of one thread over those of two, the job of one pair taken off."""
    tokenizer, source = material.tokenizer(), material.pairs(pairs)
    one = material.head(source, 1, folder / "one.jsonl")
    ratios, cost = [], []
    with workers(single=Worker("prepare_job"), double=Worker("prepare_job", threads=2)) as both:
        for _ in range(rounds + 1):
            fixed = {name: worker.run(one, tokenizer) for name, worker in both.items()}
            done = {name: worker.run(source, tokenizer) for name, worker in both.items()}
            walls = {name: done[name].wall - fixed[name].wall for name in both}
            ratios.append(walls["single"] / walls["double"])
            cost.append(done["double"].seconds / done["single"].seconds)
    return [
        Row("two threads against one, wall seconds of a preparation", median(ratios[1:]), "x", 1.7, 1.9),
        Row("two threads against one, processor seconds", median(cost[1:]), "x"),
    ]


def memory_rows(_: Path, sizes: tuple[int, ...] = (20_000, 100_000)) -> list[Row]:
    """Peak memory of fresh processes beyond what they have with the tokenizer loaded; maps of files are not counted."""
    tokenizer = material.tokenizer()
    added = [_peak(material.pairs(size), tokenizer) for size in sizes]
    rows = [
        Row(f"added peak memory, {size:,} pairs", peak / 2**20, "MiB") for size, peak in zip(sizes, added, strict=True)
    ]
    growth = (added[-1] - added[0]) / (sizes[-1] - sizes[0])
    title = f"memory of each further pair, from {sizes[0]:,} to {sizes[-1]:,}"
    # What tells a repeated pair (16 bytes, in a table that doubles) and its row in the report remain.
    return [*rows, Row(title, growth, "bytes", 400, 100, at_most=True)]


def _peak(pairs: Path, tokenizer: str) -> int:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.data.resources", str(pairs), tokenizer]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(pairs: str, tokenizer: str) -> int:
    """Bytes that a preparation and an epoch of batches add at their peak."""
    from benchmarks.data.material import OPTIONS
    from grmlight.data import GroupLoader, prepare

    with tempfile.TemporaryDirectory() as folder:
        first = material.head(Path(pairs), 8, Path(folder) / "first.jsonl")
        for _batch in GroupLoader(prepare(str(first), tokenizer, OPTIONS, Path(folder) / "first").store, BATCH):
            pass
        before, most, done = _anonymous(), 0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.wait(0.005):
                most = max(most, _anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _batch in GroupLoader(prepare(pairs, tokenizer, OPTIONS, Path(folder) / "store").store, BATCH, seed=0):
            time.sleep(0)
        done.set()
        watcher.join()
    return most - before


def _anonymous() -> int:
    """Bytes of this process that are no pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the system does not tell a process's memory")


if __name__ == "__main__":
    print(_measure(*sys.argv[1:]))
