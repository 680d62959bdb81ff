"""Whole steps of every variant, in turn, on one shape and batch size; their losses must be equal."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from benchmarks.train.material import make_material
from benchmarks.train.ours import ours
from benchmarks.train.peers import Steps, Variant, padded_language_loss, trl
from benchmarks.train.report import Row
from benchmarks.train.shapes import Shape, ceilings, population, typical_batch

VARIANTS: dict[str, Variant] = {
    "trl": trl(),
    "trl without checkpointing": trl(gradient_checkpointing=False),
    "bucketed": ours(packing="never"),
    "ours": ours(),
    "padded sft": padded_language_loss,
    "ours sft": ours("sft"),
    "ours dpo": ours("dpo"),
}

_SAME = (("trl", "trl without checkpointing", "bucketed", "ours"), ("padded sft", "ours sft"))
"""Variants that compute one and the same loss."""

FIGURES: tuple[tuple[str, str, str, float, float], ...] = (
    ("reward model against TRL's RewardTrainer", "trl", "ours", 4.5, 5.0),
    ("reward model against TRL without checkpointing", "trl without checkpointing", "ours", 3.5, 4.0),
    ("reward model against length-bucketed padding", "bucketed", "ours", 1.25, 1.4),
    ("GRM-SFT against padded GRM-SFT with full logits", "padded sft", "ours sft", 3.8, 4.2),
    ("GRM-SFT against TRL's plain reward model", "trl", "ours sft", 4.0, 4.5),
    ("GRM-DPO without reference against TRL's plain reward model", "trl", "ours dpo", 3.6, 4.0),
)
"""Figure, slow variant, fast variant, floor and target of the ratio of their times."""

_OTHER_SHAPES = 0.88
"""Floors and targets of the other shapes are this share of the reference shape's."""


def step_rows(shape: Shape, batch: int, repetitions: int, steps: int, folder: Path) -> list[Row]:
    """The ratios of step times, medians over repetitions that alternate, and the token ceilings beside them."""
    pairs = population(shape)
    material = make_material(folder, typical_batch(pairs, batch))
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for repetition in range(repetitions):
        runs: dict[str, Steps] = {}
        for name, variant in VARIANTS.items():
            runs[name] = variant(material, steps + 1)
            seconds[name].append(statistics.mean(runs[name].seconds))
            print(
                f"  {shape.name} {batch} [{repetition + 1}/{repetitions}] {name}: {seconds[name][-1]:.3f} s", flush=True
            )
        check_same(runs)
    where = f"{shape.name}, batch {batch}"
    rows = [
        *_ratios(seconds, where, _floors(shape, batch)),
        *(Row(f"seconds a step, {name} ({where})", statistics.median(took), "s") for name, took in seconds.items()),
    ]
    found = ceilings(pairs, batch)
    tokens = {"padded to shared": found.padded_to_shared, "bucketed to shared": found.bucketed_to_shared}
    return rows + [Row(f"token ceiling, {name} ({where})", value, "x") for name, value in tokens.items()]


def check_same(runs: dict[str, Steps]) -> None:
    """Assert that variants of one loss had it at every step."""
    for names in _SAME:
        first, *others = (runs[name].losses for name in names if name in runs)
        for losses in others:
            assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(first, losses, strict=True)), (names, runs)


def _floors(shape: Shape, batch: int) -> float | None:
    """The factor of floors and targets; None where there are none."""
    if batch != 8:
        return None
    return 1.0 if shape.name == "reference" else _OTHER_SHAPES


def _ratios(seconds: dict[str, list[float]], where: str, factor: float | None) -> list[Row]:
    rows = []
    for figure, slow, fast, floor, target in FIGURES:
        ratio = median_ratio(seconds[slow], seconds[fast])
        bounds = (None, None) if factor is None else (floor * factor, target * factor)
        rows.append(Row(f"{figure} ({where})", ratio, "x", *bounds))
    added = 100 * (median_ratio(seconds["ours sft"], seconds["ours"]) - 1)
    bounds = (None, None) if factor is None else (12.0, 8.0)
    rows.append(Row(f"GRM-SFT's added time over our plain reward model ({where})", added, "%", *bounds, at_most=True))
    return rows


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """The median of the ratios within each repetition."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
