"""The best-of-n sweep over every n: ours against a nested scan, and against exact binomials, as published code does it.

The scan goes, for each n, through all subsets of n answers; it is what the estimator means, and it ends at few answers.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from benchmarks.train.peers import clock
from benchmarks.train.report import Row
from grmlight.policy.best_of_n.estimator import best_of_n

SCANNED, PROMPTS = 14, 4
POOL = 600

Prompt = tuple[np.ndarray, np.ndarray]


def best_of_n_rows(repetitions: int = 3) -> list[Row]:
    """All n of 14 answers to 4 prompts against the scan; all n of 600 answers to 2 prompts against binomials."""
    scan = _ratio(_prompts(SCANNED, PROMPTS), _nested_scan, repetitions)
    exact = _ratio(_prompts(POOL, 2), _exact_binomials, repetitions)
    ours = _seconds(lambda: _ours(_prompts(10_000, 1), np.arange(1, 10_001)))
    return [
        Row(
            f"best-of-n sweep against a nested scan ({SCANNED} answers, {PROMPTS} prompts, every n)",
            scan,
            "x",
            100,
            200,
        ),
        Row(f"best-of-n sweep against exact binomials ({POOL} answers, 2 prompts, every n)", exact, "x"),
        Row("best-of-n sweep, 10,000 answers, every n, a prompt", ours, "s"),
    ]


def _prompts(answers: int, prompts: int) -> list[Prompt]:
    draw = np.random.default_rng(0)
    return [(draw.normal(size=answers), draw.normal(size=answers)) for _ in range(prompts)]


def _ratio(prompts: list[Prompt], peer: Callable[[list[Prompt]], np.ndarray], repetitions: int) -> float:
    sizes_S = np.arange(1, len(prompts[0][0]) + 1)
    np.testing.assert_allclose(_ours(prompts, sizes_S), peer(prompts), rtol=1e-10, atol=1e-12)
    slow = _seconds(lambda: peer(prompts))
    return slow / statistics.median(_seconds(lambda: _ours(prompts, sizes_S)) for _ in range(10 * repetitions))


def _seconds(run: Callable[[], object]) -> float:
    begin = clock()
    run()
    return clock() - begin


def _ours(prompts: Sequence[Prompt], sizes_S: np.ndarray) -> np.ndarray:
    found_PSV = best_of_n([proxy for proxy, _ in prompts], [gold[:, None] for _, gold in prompts], sizes_S)
    return found_PSV[:, :, 0].mean(axis=0)


def _nested_scan(prompts: list[Prompt]) -> np.ndarray:
    means = []
    for n in range(1, len(prompts[0][0]) + 1):
        for_n = []
        for proxy, gold in prompts:
            scores, values = proxy.tolist(), gold.tolist()
            subsets = itertools.combinations(range(len(scores)), n)
            for_n.append(statistics.fmean(values[max(subset, key=scores.__getitem__)] for subset in subsets))
        means.append(statistics.fmean(for_n))
    return np.array(means)


def _exact_binomials(prompts: list[Prompt]) -> np.ndarray:
    answers = len(prompts[0][0])
    ordered = [gold[np.argsort(proxy)].tolist() for proxy, gold in prompts]
    means = []
    for n in range(1, answers + 1):
        total = math.comb(answers, n)
        weights = [float(Fraction(math.comb(place - 1, n - 1), total)) for place in range(n, answers + 1)]
        means.append(statistics.fmean(float(np.dot(weights, gold[n - 1 :])) for gold in ordered))
    return np.array(means)
