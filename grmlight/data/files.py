"""Files that appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write under a temporary name, then rename. The name is always the same, so a later write sweeps a dead one's."""
    temporary = path.with_name(f".{path.name}.grmlight-tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2) + "\n")
