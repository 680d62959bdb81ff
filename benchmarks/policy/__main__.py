"""Run the benchmarks: `python -m benchmarks.policy [PART ...]`; parts not named keep their earlier results.

Parts: best_of_n, online, alignment (10 minutes), alignment_shapes. Writes benchmarks/results/policy.json and the tables
in docs/benchmarks.md. Times are seconds of the process's own processors with one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.policy.alignment import alignment_rows, other_shape_rows
from benchmarks.policy.best_of_n import best_of_n_rows
from benchmarks.policy.online import online_rows
from benchmarks.train.ours import quiet
from benchmarks.train.report import Row, write_json, write_tables

_ROOT = Path(__file__).parents[1]
_RESULT, _PAGE = _ROOT / "results" / "policy.json", _ROOT.parent / "docs" / "benchmarks.md"

PARTS: dict[str, Callable[[Path], list[Row]]] = {
    "best_of_n": lambda _: best_of_n_rows(),
    "online": online_rows,
    "alignment": alignment_rows,
    "alignment_shapes": other_shape_rows,
}


def main() -> None:
    """Run the parts that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    warnings.filterwarnings("ignore")
    quiet()
    torch.set_num_threads(1)
    for part in parser.parse_args().parts or list(PARTS):
        print(part, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            rows = PARTS[part](Path(folder))
        for row in rows:
            print(f"{row.figure}: {row.value:.3g} {row.unit} {row.verdict}", flush=True)
        write_json(part, rows, _RESULT)
        write_tables(_PAGE, _RESULT)


if __name__ == "__main__":
    main()
