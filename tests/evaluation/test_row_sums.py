"""Intervals of a set's figures against draws of whole prompts, one row at a time in pure Python."""

import math
import random

import numpy as np
import pytest
import torch

from grmlight.evaluation import pair_figures, pair_metrics, pair_sums, pair_values
from grmlight.evaluation.clustered import RESAMPLES
from grmlight.evaluation.pair_figures import group_sums
from grmlight.evaluation.row_sums import SEED, counts_of, intervals, row_sums
from tests.batches import outputs_of, pair_batch
from tests.evaluation.test_pair_figures import reference
from tests.reference.packing import pack_groups


def drawn_pairs(count, seed=1):
    """(better, worse, label, tokens of better, tokens of worse), with ties, other sides and equal rewards."""
    chance = random.Random(seed)
    labels = [1.0, 1.0, 0.8, 0.2, 0.5]
    found = [
        (chance.gauss(0.3, 1), chance.gauss(0, 1), chance.choice(labels), chance.randint(1, 9), chance.randint(1, 9))
        for _ in range(count)
    ]
    return [*found[:-1], (0.5, 0.5, 1.0, 3, 3)]


def sums_of(pairs, first=1):
    batch = pair_batch(
        len(pairs), labels=[pair[2] for pair in pairs], scored=[tokens for pair in pairs for tokens in pair[3:]]
    )
    rewards = torch.tensor([reward for pair in pairs for reward in pair[:2]], dtype=torch.float64)
    sums = row_sums(rewards, batch)
    sums[:, 0] += first - 1
    return sums


def longer_wins(pairs):
    points = [0.5 + 0.5 * np.sign((a - b) * (label - 0.5)) for _, _, label, a, b in pairs if label != 0.5]
    return sum(points) / len(points)


def test_each_interval_is_that_of_its_draws_one_by_one():
    pairs = drawn_pairs(30)
    prompts = {row: f"p{row % 9}" for row in range(1, 31)}
    found = intervals(torch.cat([sums_of(pairs[20:], 21), sums_of(pairs[:20])]), prompts)
    names = list(dict.fromkeys(prompts.values()))
    rows = {name: [pairs[row - 1] for row in prompts if prompts[row] == name] for name in names}
    draws = np.random.default_rng(SEED).integers(9, size=(RESAMPLES, 9)).tolist()
    every = []
    for draw in draws:
        drawn = [pair for place in draw for pair in rows[names[place]]]
        every.append(reference(drawn) | {"longer_wins": longer_wins(drawn)})
    assert found.keys() == every[0].keys()
    for name, bounds in found.items():
        expected = np.percentile([figures[name] for figures in every], [2.5, 97.5]).tolist()
        assert list(bounds) == pytest.approx(expected, rel=1e-6, abs=1e-6), name
        assert bounds.low < bounds.high


def test_rows_of_one_prompt_widen_the_interval_and_one_prompt_has_none():
    pairs = drawn_pairs(200, seed=2)
    copies = sums_of([pair for pair in pairs[:50] for _ in range(4)])
    apart = intervals(copies, {row: str(row) for row in range(1, 201)})["accuracy"]
    together = intervals(copies, {row: str((row - 1) // 4) for row in range(1, 201)})["accuracy"]
    assert together.high - together.low > 1.7 * (apart.high - apart.low)
    assert intervals(copies, dict.fromkeys(range(1, 201), "one")) == {}


def test_groups_add_up_to_their_pack_and_fillers_to_nothing():
    chance = random.Random(3)
    groups = [[[number] * chance.randint(2, 9) for number in range(size)] for size in (3, 2, 4, 2)]
    comparisons = [[(0, 1), (2, 0), (2, 1)], [(1, 0)], [(a, b) for a in range(4) for b in range(a + 1, 4)], [(0, 1)]]
    labels = [[1.0, 0.5, 0.75], [1.0], [0.5, 1.0, 1.0, 0.25, 1.0, 1.0], [1.0]]
    batch = pack_groups(
        groups, [[0] * len(group) for group in groups], comparisons, labels, counts=[1.0, 1.0, 1.0, 0.0]
    )
    rewards = torch.tensor([chance.gauss(0, 1) for _ in range(11)], dtype=torch.float64)
    values = pair_values(rewards, batch)
    sums_GS = group_sums(values, batch)
    torch.testing.assert_close(sums_GS.sum(0), pair_sums([values]))
    assert not sums_GS[3].any()
    rows_GK = row_sums(rewards, batch)
    assert rows_GK[:, 0].tolist() == [batch.row_C[place].item() for place in (0, 3, 4, 10)]
    metrics = pair_metrics("")
    metrics.update(outputs_of(rewards.tolist()), batch)
    logged = {name: float(value) for name, value in metrics.compute().items()}
    _, right, pairs = counts_of(rows_GK).sum(0).tolist()
    assert (right / pairs, pairs) == pytest.approx((logged["accuracy"], logged["pairs"]))
    assert pair_figures(rows_GK[:, 1:-1].sum(0).tolist()) == pytest.approx(
        {name: value for name, value in logged.items() if name not in ("longer_wins", "pairs", "groups")}, rel=1e-5
    )
    assert (rows_GK[:, -1].sum().item() / pairs + 1) / 2 == pytest.approx(logged["longer_wins"])


def test_a_figure_that_no_draw_defines_is_left_out():
    alike = [(1.0, 0.0, 1.0, 2, 2), (0.0, 1.0, 1.0, 2, 2), (2.0, 1.0, 0.5, 2, 2)]
    found = intervals(sums_of(alike), {1: "a", 2: "b", 3: "c"})
    assert "length_correlation" not in found
    assert not any(math.isnan(value) for bounds in found.values() for value in bounds)
