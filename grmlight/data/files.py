"""Files that appear whole or not at all, and where the cache is.

What is being written has a temporary name that tells which process writes it; the next writer sweeps those of the dead.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

_TEMPORARY = ".grmlight-tmp-"


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


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:
        pass
    return True
