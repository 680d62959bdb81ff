"""Thresholds as a file: a number for each reward's name, and where it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from grmlight.data.files import write_whole
from grmlight.data.names import PACKAGE, resolve


def read_thresholds(given: str | Path | Mapping[str, float]) -> dict[str, float]:
    """Thresholds by the name of their reward.

    Args:
        given: a mapping, or a YAML file whose `thresholds` is one, as `grmlight proxy-points` writes it; one inside a
            package is `package:MODULE/PATH`.

    Errors: ValueError that names the file and the reward.
    """
    where = "thresholds" if isinstance(given, Mapping) else str(given)
    found = given if isinstance(given, Mapping) else _read(_place(str(given)))
    if not isinstance(found, Mapping) or not found:
        raise ValueError(
            f"{where}: there is no `thresholds` of {{reward: number}}; write it with `grmlight proxy-points`"
        )
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{where}: the threshold of reward {name!r} is {value!r}; give a finite number")
    return {str(name): float(value) for name, value in found.items()}


def write_thresholds(path: Path, thresholds: Mapping[str, float], origin: Mapping[str, Any]) -> None:
    """Write thresholds and what is known of their origin, whole or not at all."""
    head = "# Thresholds of constrained PPO (docs/constrained.md); read by configs/ppo-constrained.yaml.\n"
    write_whole(path, head + yaml.safe_dump({"thresholds": dict(thresholds), **origin}, sort_keys=False))


def _place(given: str) -> Path:
    if not given.startswith(PACKAGE):
        return Path(given)
    folder, _, name = given.rpartition("/")
    return Path(resolve(folder, "thresholds")) / name


def _read(path: Path) -> Any:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file; write it with `grmlight proxy-points`") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    return document.get("thresholds") if isinstance(document, Mapping) else None
