"""The curve of an online run: proxy and watched gold against the KL, from what it logged."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from grmlight.evaluation.curves import CurvePoint

ESTIMATORS = {"k1": "rollout/kl", "k3": "rollout/kl_k3"}


def run_curve(
    metrics: Path, study: str, seed: int, proxy: str = "rollout/score", gold: str = "", estimator: str = "k1"
) -> list[CurvePoint]:
    """A point for each logged line of a run.

    Args:
        metrics: its `metrics.csv`.
        study: what the run is part of.
        seed: of the run.
        proxy: the figure that was optimized; the run's method is named after it.
        gold: the figure that was watched, `rollout/watch_NAME`; without one the gold is NaN.
        estimator: of the KL, "k1" or "k3".

    A line's figures are means over its iterations' answers; how far the gold's mean may be off is not logged. A figure
    that is not finite is not logged either, and is NaN here. Points carry the KL's coefficient where it never moved.

    Errors: ValueError for figures that the run did not log, and for a cell that is no number: names the line.
    """
    with metrics.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(ESTIMATORS[estimator])]
    wanted = [proxy, *([gold] if gold else [])]
    if absent := [name for name in wanted if not rows or name not in rows[0]]:
        found = ", ".join(rows[0]) if rows else "no rollouts"
        raise ValueError(f"{metrics}: the run logged no {', '.join(absent)}; it has {found}")
    coefficients = {row["rollout/kl_coefficient"] for row in rows}
    beta = float(coefficients.pop()) if len(coefficients) == 1 else None

    def number(row: dict[str, str], name: str) -> float:
        try:
            return float(row[name] or math.nan)
        except ValueError:
            raise ValueError(f"{metrics}: step {row['step']}: {name} is {row[name]!r}, which is no number") from None

    return [
        CurvePoint(
            study=study,
            method=f"online {proxy.rpartition('/')[2]}",
            seed=seed,
            step=int(row["step"]),
            n=None,
            beta=beta,
            kl=number(row, ESTIMATORS[estimator]),
            kl_estimator=estimator,
            proxy=number(row, proxy),
            gold=number(row, gold) if gold else math.nan,
            standard_error=math.nan,
        )
        for row in rows
    ]
