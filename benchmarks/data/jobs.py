"""Whole preparations as jobs of processes of their own, which take turns: `python -m benchmarks.data.jobs NAME`.

A job goes from a file of pairs and a tokenizer's folder to torch batches of eight pairs. Each begins cold: it loads the
tokenizer and has an empty folder to write to; what is imported stays from job to job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

BATCH = 8


@dataclasses.dataclass(frozen=True)
class Done:
    """What a job took and gave.

    Attributes:
        seconds: processor seconds, of all threads and child processes.
        wall: seconds.
        pairs: how many it kept.
        ids: where the token ids are, see `save_ids`; only if they were asked for.
    """

    seconds: float
    wall: float
    pairs: int
    ids: str = ""

    def pairs_and_ids(self) -> dict[str, np.ndarray]:
        """What `save_ids` wrote."""
        with np.load(self.ids) as arrays:
            return dict(arrays)


Job = Callable[[str, str, Path], tuple[int, Callable[[], list[list[int]]]]]
"""Of a file of pairs, a tokenizer's folder and an empty folder: how many pairs are left, and a function that gives the
ids of all responses with their prompts, a pair's chosen one and then its rejected one, in the file's order."""


class Worker:
    """A process that does one kind of job, with one thread unless told otherwise.

    Args:
        name: of a module of this package that has a `job`.
        path: folders whose packages come before the installed ones.
        threads: of whatever asks the environment.
        variables: more of the environment.
    """

    def __init__(self, name: str, path: str = "", threads: int = 1, variables: dict[str, str] | None = None) -> None:
        root = str(Path(__file__).parents[2])
        number = str(threads)
        names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, number) | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, [path, root])), "TOKENIZERS_PARALLELISM": "false"}
        environment |= variables or {}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.data.jobs", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, pairs: Path, tokenizer: str, ids: str = "") -> Done:
        """Do the job now; the ids go where `ids` says."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"pairs": str(pairs), "tokenizer": tokenizer, "ids": ids}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the worker died; what it said is above"
        return Done(**json.loads(answer))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextlib.contextmanager
def workers(**made: Worker) -> Iterator[dict[str, Worker]]:
    """Workers that end with the block."""
    try:
        yield made
    finally:
        for worker in made.values():
            worker.close()


def save_ids(path: str, ids: list[list[int]]) -> None:
    """Write lists of ids end to end, with where each ends."""
    ends = np.cumsum([len(each) for each in ids], dtype=np.int64)
    tokens = np.concatenate([np.asarray(each, np.int64) for each in ids]) if ids else np.zeros(0, np.int64)
    np.savez(path, ends=ends, tokens=tokens)


def same_ids(one: Done, other: Done) -> bool:
    """Whether two jobs gave the same ids for the same responses."""
    both = one.pairs_and_ids(), other.pairs_and_ids()
    return all(np.array_equal(both[0][name], both[1][name]) for name in ("ends", "tokens"))


def _serve(job: Job) -> None:
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            began, wall = _processor_seconds(), time.perf_counter()
            kept, ids = job(request["pairs"], request["tokenizer"], Path(folder))
            done = Done(_processor_seconds() - began, time.perf_counter() - wall, kept, request["ids"])
            if request["ids"]:
                save_ids(request["ids"], ids())
            del ids
        answers.write(json.dumps(dataclasses.asdict(done)) + "\n")
        answers.flush()


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    _serve(importlib.import_module(f"benchmarks.data.{sys.argv[1]}").job)
