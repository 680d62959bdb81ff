"""Checkpoints of a run: which is meant, is it whole, and where does its step counting stand?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grmlight.models.shards import check_shards, is_shards, read_plain, shapes


def find_checkpoint(path: str, training: bool) -> Path:
    """The checkpoint that a path means: itself, or the newest complete one of a run directory.

    Args:
        path: a checkpoint file, a folder of shards, a run directory or its `checkpoints/`.
        training: whether optimizer and loops will be needed.

    Errors: ValueError in one line for what is no checkpoint of a run; names the newest good one beside it.
    """
    given = Path(path)
    if given.is_dir() and not is_shards(given):
        if (found := newest_checkpoint(given, training)) is None:
            raise ValueError(f"{path}: is a folder without a complete checkpoint of a run")
        return found
    try:
        read_checkpoint(given, training)
    except ValueError as error:
        good = newest_checkpoint(given.parent, training) if given.parent.is_dir() else None
        hint = f"; the newest good one beside it is {good}" if good else ""
        raise ValueError(f"{error}{hint}") from error
    return given.resolve() if given.is_symlink() else given


def last_checkpoint(folder: str | None) -> Path | None:
    """The newest complete checkpoint to go on from in a folder that may not exist yet, or None: start anew.

    Errors: ValueError if no folder is named: each run would look into a new one.
    """
    if not folder:
        raise ValueError("ckpt_path last: needs checkpoint.dirpath; or give the run directory itself")
    return newest_checkpoint(Path(folder), training=True) if Path(folder).is_dir() else None


def newest_checkpoint(folder: Path, training: bool) -> Path | None:
    """The complete checkpoint with most steps in a run directory or its `checkpoints/`; None if there is none."""
    inner = folder / "checkpoints"
    steps: dict[Path, tuple[int, float]] = {}
    for path in (inner if inner.is_dir() else folder).glob("*.ckpt"):
        if path.is_symlink() or path.name.startswith("."):
            continue
        try:
            steps[path] = read_checkpoint(path, training).get("global_step", 0), path.stat().st_mtime
        except ValueError:
            continue
    return max(steps, key=lambda path: steps[path], default=None)


def read_checkpoint(path: Path, training: bool) -> dict[str, Any]:
    """What a checkpoint holds; the tensors of a file stay on disk, those of shards are left out.

    Errors: ValueError in one line for what is no complete checkpoint of a run.
    """
    if is_shards(path):
        found: Any = check_shards(path)
        whole = bool(shapes(path, "state_dict.")) and (not training or bool(found.get("lr_schedulers")))
        needed = {"loops"}
    else:
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file")
        found = read_plain(path, mmap=True)
        whole = True
        needed = {"state_dict"} | ({"loops", "optimizer_states"} if training else set())
    if not isinstance(found, dict) or not whole or not needed <= found.keys():
        raise ValueError(f"{path}: is no checkpoint of a run; name one of its checkpoints/*.ckpt")
    return found


def count_packs(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Count batches as steps x the current accumulation, by which Lightning cuts steps."""
    fit_loop = checkpoint["loops"]["fit_loop"]
    steps = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["current"]["completed"]
    progress = fit_loop["epoch_loop.batch_progress"]
    shift = steps * accumulate - progress["current"]["ready"]
    for name in ("ready", "started", "processed", "completed"):
        progress["current"][name] += shift
        progress["total"][name] += shift
