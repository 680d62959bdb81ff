"""The paired bootstrap: how much better one run is than another on the same rows, with an interval.

Whole prompts are drawn with replacement, since rows of one prompt are not independent; the interval is the percentiles
of what the draws give (Efron and Tibshirani 1993, chapters 8 and 13). Both runs are read off the same draws.

Shape suffixes: P prompts, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grmlight.evaluation.rows import Row

DRAWS = 10_000
_AT_ONCE = 4_000_000


class Difference(NamedTuple):
    """A difference of two accuracies.

    Attributes:
        value: over all rows that both runs have.
        low, high: its 95% interval; NaN where a part holds a single prompt.
        rows: rows that both runs have.
        prompts: their prompts.
    """

    value: float
    low: float
    high: float
    rows: int
    prompts: int


def paired_difference(parts: Sequence[tuple[Sequence[Row], Sequence[Row]]], draws: int = DRAWS) -> Difference:
    """Accuracy of the second run minus that of the first, as the plain mean over parts.

    Args:
        parts: for each part the rows of the first and of the second run; rows of one name are the same row. A set is
            one part; RewardBench's average has four. Prompts are those of the first run. Rows that one run lacks are
            left out; those that are left of a stratum weigh together what the stratum did.
        draws: draws of the bootstrap.

    Errors: ValueError if the runs share no row of a part.
    """
    sums = [_prompt_sums(*part) for part in parts]
    generator = np.random.default_rng(0)
    value = float(np.mean([_ratio(part.sum(0)) for _, part in sums]))
    rows, prompts = sum(count for count, _ in sums), sum(len(part) for _, part in sums)
    if any(len(part) < 2 for _, part in sums):
        return Difference(value, float("nan"), float("nan"), rows, prompts)
    drawn_B = np.mean([_drawn(part, draws, generator) for _, part in sums], axis=0)
    low, high = np.percentile(drawn_B, [2.5, 97.5])
    return Difference(value, float(low), float(high), rows, prompts)


def _prompt_sums(first: Sequence[Row], second: Sequence[Row]) -> tuple[int, np.ndarray]:
    """The number of shared rows, and for each prompt how much more is right, and of how much [P, 2]."""
    others = {row.row: row for row in second}
    sums: dict[str, list[float]] = {}
    shared = [(row, others[row.row]) for row in first if row.row in others]
    if not shared:
        raise ValueError("the runs have no row in common; evaluate both on the same data")
    scales = _scales(first, [row for row, _ in shared])
    for row, other in shared:
        total = sums.setdefault(row.prompt, [0.0, 0.0])
        pairs = scales.get(row.stratum, 1.0) * row.pairs
        total[0] += (other.right / other.pairs - row.right / row.pairs) * pairs
        total[1] += pairs
    return len(shared), np.array(list(sums.values()))


def _scales(rows: Sequence[Row], shared: Sequence[Row]) -> dict[str, float]:
    """For each stratum by how much its shared rows weigh more, so that they weigh together what all of them did."""

    def weights(of: Sequence[Row]) -> dict[str, float]:
        found: dict[str, float] = {}
        for row in of:
            if row.stratum:
                found[row.stratum] = found.get(row.stratum, 0.0) + row.pairs
        return found

    whole = weights(rows)
    return {name: whole[name] / weight for name, weight in weights(shared).items()}


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _drawn(sums_P2: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """The difference on each draw of as many prompts as there are."""
    count = len(sums_P2)
    chunk = max(1, _AT_ONCE // count)
    sizes = [min(chunk, draws - start) for start in range(0, draws, chunk)]
    return np.concatenate([difference_of_draws(sums_P2, generator.integers(count, size=(n, count))) for n in sizes])


def difference_of_draws(sums_P2: np.ndarray, drawn_BP: np.ndarray) -> np.ndarray:
    """The difference on each draw [B].

    Args:
        sums_P2: for each prompt how much more is right, and of how much.
        drawn_BP: the prompts of each draw.
    """
    return sums_P2[drawn_BP, 0].sum(1) / sums_P2[drawn_BP, 1].sum(1)
