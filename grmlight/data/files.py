"""Files that appear whole or not at all, folders that one process at a time writes to, and where the cache is.

What is being written has a temporary name that tells which process writes it; the next writer sweeps those of the dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TEMPORARY = ".grmlight-tmp-"

LOCK = ".grmlight-lock"
"""The file in a folder that says who writes to it."""


def cache_directory() -> Path:
    """Where stores, tokenizers and worlds are kept: GRMLIGHT_CACHE, or the user's cache folder."""
    if configured := os.environ.get("GRMLIGHT_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grmlight"


def temporary_sibling(target: Path) -> Path:
    """The temporary name of a file or folder, in its own folder, which is made and swept."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in target.parent.glob(f"{_TEMPORARY}*"):
        if not _alive(path.name.removeprefix(_TEMPORARY).partition("-")[0]):
            remove(path)
    return target.parent / f"{_TEMPORARY}{os.getpid()}-{target.name}"


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text under its temporary name, then rename."""
    temporary = temporary_sibling(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        remove(temporary)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes that ask likewise out of a folder, which is made; a process that dies lets go of it.

    Errors: ValueError says who is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(f"{folder}: {holder} is writing to it; wait for that, or name another folder") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        # Removing the file would let a third process lock a new one while a second one waits for this.
        yield


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:
        pass
    return True
