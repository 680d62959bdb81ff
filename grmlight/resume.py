"""Checkpoints of a run: is it one, and where does its step counting stand?"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch


def check_checkpoint(path: str, training: bool) -> None:
    """Read a checkpoint file before anything is built. A folder of shards is left to the strategy.

    Args:
        path: as the user gave it; "last", "best" and the like are Lightning's.
        training: whether its optimizer and loops will be needed.

    Errors: ValueError in one line for what is no checkpoint of a run.
    """
    file = Path(path)
    if path in ("last", "best", "hpc", "registry") or file.is_dir():
        return
    if not file.is_file():
        raise ValueError(f"ckpt_path {path}: there is no such file")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"ckpt_path {path}: is no checkpoint that can be read safely ({reason})") from error
    needed = {"state_dict", "loops", "optimizer_states"} if training else {"state_dict"}
    if not isinstance(found, dict) or not needed <= found.keys():
        raise ValueError(f"ckpt_path {path}: is no checkpoint of a run; name one of its checkpoints/*.ckpt")


def count_packs(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Count batches as steps x the current accumulation, by which Lightning cuts steps."""
    fit_loop = checkpoint["loops"]["fit_loop"]
    steps = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["current"]["completed"]
    progress = fit_loop["epoch_loop.batch_progress"]
    shift = steps * accumulate - progress["current"]["ready"]
    for name in ("ready", "started", "processed", "completed"):
        progress["current"][name] += shift
        progress["total"][name] += shift
