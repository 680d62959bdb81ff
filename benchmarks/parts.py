"""Run the parts of a set of benchmarks; those not named keep their earlier results."""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.train.report import Row, write_json, write_tables

_ROOT = Path(__file__).parent

Parts = dict[str, Callable[[Path], list[Row]]]
"""By name, what measures in a folder that is empty at first."""


def run_parts(name: str, description: str | None, parts: Parts, asked: Parts | None = None) -> None:
    """Run the parts that are named, or all of them, into results/NAME.json and the tables of docs/benchmarks.md.

    Those in `asked` run only when they are named.
    """
    known = parts | (asked or {})
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("parts", nargs="*", choices=[[], *known], default=[])
    named = parser.parse_args().parts or list(parts)
    result, page = _ROOT / "results" / f"{name}.json", _ROOT.parent / "docs" / "benchmarks.md"
    warnings.filterwarnings("ignore")
    _quiet()
    torch.set_num_threads(1)
    for part in named:
        print(part, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            rows = known[part](Path(folder))
        for row in rows:
            print(f"{row.figure}: {row.value:.3g} {row.unit} {row.verdict}", flush=True)
        write_json(part, rows, result)
        write_tables(page, result)


def _quiet() -> None:
    """Leave out what frameworks say about themselves."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "transformers", "trl"):
        logging.getLogger(name).setLevel(logging.ERROR)
