"""What a prepared data set holds, in a few lines: tokens, what sharing saves, lengths, speed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from grmlight.data.prepare import Prepared

_QUANTILES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


def summarize(prepared: Prepared) -> dict[str, Any]:
    """The figures.

    Returns:
        pairs, tokens; shared: the part of the tokens that sharing prompts saves; lengths: p50, p95 and max of the
        tokens of prompts, and of the scored tokens of the chosen and the rejected side of each comparison.
    """
    found = prepared.store.lengths()
    tokens = int(prepared.store.costs.sum())
    return {
        "pairs": len(prepared.store),
        "tokens": tokens,
        "shared": 1 - tokens / found["unshared"],
        "lengths": {
            "prompt": _quantiles(found["prompt_G"]),
            "chosen": _quantiles(found["better_C"]),
            "rejected": _quantiles(found["worse_C"]),
        },
    }


def describe_summary(prepared: Prepared, seconds: float) -> str:
    """A few lines of `summarize`, and how fast it went."""
    found = summarize(prepared)
    speed = f"{prepared.rows} rows in {seconds:.1f} s, {prepared.rows / max(seconds, 1e-9):.0f} rows/s"
    lines = [
        f"{found['pairs']} pairs, {found['tokens']} tokens; sharing prompts saves {found['shared']:.1%}",
        f"{'tokens':10}" + "".join(f"{name:>9}" for name in _QUANTILES),
    ]
    for name, values in found["lengths"].items():
        lines.append(f"  {name:8}" + "".join(f"{value:>9}" for value in values.values()))
    lines.append(speed if prepared.rows else "the store was there already")
    return "\n".join(lines)


def _quantiles(values: NDArray[np.int64]) -> dict[str, int]:
    """By the nearest rank, so that each is a length that occurs."""
    levels = list(_QUANTILES.values())
    return dict(zip(_QUANTILES, map(int, np.quantile(values, levels, method="higher")), strict=True))
