"""Run the benchmarks: `python -m benchmarks.policy [PART ...]`; parts not named keep their earlier results.

Writes benchmarks/results/policy.json. Times are seconds of the process's own processors with one thread.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.policy.best_of_n import best_of_n_rows
from benchmarks.train.report import Row, write_json

_RESULT = Path(__file__).parents[1] / "results" / "policy.json"

PARTS: dict[str, Callable[[], list[Row]]] = {"best_of_n": best_of_n_rows}


def main() -> None:
    """Run the parts that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for part in parser.parse_args().parts or list(PARTS):
        print(part, flush=True)
        rows = PARTS[part]()
        for row in rows:
            print(f"{row.figure}: {row.value:.3g} {row.unit} {row.verdict}", flush=True)
        write_json(part, rows, _RESULT)


if __name__ == "__main__":
    main()
