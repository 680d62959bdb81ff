"""Run the benchmarks: `python -m benchmarks.train [PART ...]`; parts not named keep their earlier results.

Parts: steps (three shapes at batch 8), batches (the reference shape at 4 and 32), scoring, memory, lightning, gpu.
Writes benchmarks/results/train.json and the tables in docs/benchmarks.md. Times are seconds of the process's own
processors with one thread, so that other work on the machine disturbs them less.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.train.gpu import gpu_rows
from benchmarks.train.lightning_cost import lightning_rows
from benchmarks.train.memory import memory_rows
from benchmarks.train.ours import quiet
from benchmarks.train.report import Row, write_json, write_tables
from benchmarks.train.scoring import scoring_rows
from benchmarks.train.shapes import SHAPES
from benchmarks.train.steps import step_rows

_ROOT = Path(__file__).parents[1]
_RESULT, _PAGE = _ROOT / "results" / "train.json", _ROOT.parent / "docs" / "benchmarks.md"


def _steps(folder: Path) -> list[Row]:
    rows = []
    for shape in SHAPES.values():
        rows += step_rows(shape, 8, 5 if shape.name == "reference" else 3, 2, folder / shape.name)
    return rows


def _batches(folder: Path) -> list[Row]:
    shape = SHAPES["reference"]
    return [row for batch in (4, 32) for row in step_rows(shape, batch, 3 if batch == 4 else 1, 1, folder / str(batch))]


PARTS: dict[str, Callable[[Path], list[Row]]] = {
    "steps": _steps,
    "batches": _batches,
    "scoring": lambda folder: scoring_rows(folder / "scoring", 5),
    "memory": lambda folder: memory_rows(folder / "memory"),
    "lightning": lambda folder: lightning_rows(folder / "lightning", 5),
    "gpu": gpu_rows,
}


def main() -> None:
    """Run the parts that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parts = parser.parse_args().parts or list(PARTS)
    warnings.filterwarnings("ignore")
    quiet()
    torch.set_num_threads(1)
    for part in parts:
        print(part, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            rows = PARTS[part](Path(folder))
        for row in rows:
            print(f"{row.figure}: {row.value:.3g} {row.unit} {row.verdict}", flush=True)
        write_json(part, rows, _RESULT)
        write_tables(_PAGE, _RESULT)


if __name__ == "__main__":
    main()
