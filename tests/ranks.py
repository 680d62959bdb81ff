"""A function on several processes that are connected by gloo, forked from the server of `tests.train_run`."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RANKS = 2


def on_ranks(work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Call `work(rank, folder, *arguments)`, a function of a module, on each; all of them must succeed."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.train_run"])
    processes = [server.Process(target=_process, args=(work, rank, folder, *arguments)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    printed = "".join(path.read_text()[-3000:] for path in sorted(folder.glob("output-*")))
    assert [process.exitcode for process in processes] == [0] * RANKS, printed


def _process(work: Callable[..., None], rank: int, folder: Path, *arguments: Any) -> None:
    try:
        with open(folder / f"output-{rank}.txt", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
        )
        work(rank, folder, *arguments)
        torch.distributed.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
