"""Run the benchmarks: `python -m benchmarks.train [PART ...]`; parts not named keep their earlier results.

Parts: steps (three shapes at batch 8), batches (the reference shape at 4 and 32), scoring, memory, lightning, gpu.
Writes benchmarks/results/train.json and the tables in docs/benchmarks.md. Times are seconds of the process's own
processors with one thread, so that other work on the machine disturbs them less.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.parts import Parts, run_parts
from benchmarks.train.gpu import gpu_rows
from benchmarks.train.lightning_cost import lightning_rows
from benchmarks.train.memory import memory_rows
from benchmarks.train.report import Row
from benchmarks.train.scoring import scoring_rows
from benchmarks.train.shapes import SHAPES
from benchmarks.train.steps import step_rows


def _steps(folder: Path) -> list[Row]:
    rows = []
    for shape in SHAPES.values():
        rows += step_rows(shape, 8, 5 if shape.name == "reference" else 3, 2, folder / shape.name)
    return rows


def _batches(folder: Path) -> list[Row]:
    shape = SHAPES["reference"]
    return [row for batch in (4, 32) for row in step_rows(shape, batch, 3 if batch == 4 else 1, 1, folder / str(batch))]


PARTS: Parts = {
    "steps": _steps,
    "batches": _batches,
    "scoring": lambda folder: scoring_rows(folder / "scoring", 5),
    "memory": lambda folder: memory_rows(folder / "memory"),
    "lightning": lambda folder: lightning_rows(folder / "lightning", 5),
    "gpu": gpu_rows,
}


if __name__ == "__main__":
    run_parts("train", __doc__, PARTS)
