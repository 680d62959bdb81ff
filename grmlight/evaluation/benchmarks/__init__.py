"""Benchmarks by name."""

from __future__ import annotations

from collections.abc import Callable

from grmlight.evaluation.benchmarks.benchmark import Benchmark as Benchmark
from grmlight.evaluation.benchmarks.example import Example as Example
from grmlight.evaluation.benchmarks.example import Reading as Reading
from grmlight.evaluation.benchmarks.hhh import HHHAlignment
from grmlight.evaluation.benchmarks.mtbench import MTBench, MTBenchClean
from grmlight.evaluation.benchmarks.pairs import PairFile as PairFile
from grmlight.evaluation.benchmarks.pairs import UnifiedFeedback
from grmlight.evaluation.benchmarks.rewardbench import RewardBench
from grmlight.evaluation.benchmarks.rewardbench2 import RewardBench2

BENCHMARKS: dict[str, Callable[[], Benchmark]] = {
    "rewardbench": RewardBench,
    "rewardbench2": RewardBench2,
    "hhh": HHHAlignment,
    "mtbench": MTBench,
    "mtbench_clean": MTBenchClean,
    "unified_feedback": UnifiedFeedback,
}
"""All that have a name."""


def read_benchmark(request: str) -> tuple[Benchmark, Reading]:
    """A benchmark and its examples: `NAME` from the hub, `NAME=PATH` from a local copy.

    Errors: ValueError in one line for an unknown name, and for what cannot be read.
    """
    name, _, path = request.strip().partition("=")
    if name not in BENCHMARKS:
        raise ValueError(f"{name!r} is no benchmark; choose from {', '.join(BENCHMARKS)}, or give pairs as a file")
    benchmark = BENCHMARKS[name]()
    return benchmark, benchmark.read(path or None)
