"""Figures of pairs against their definitions, written out one pair at a time in float64."""

import math
import random

import pytest
import torch

from grmlight.evaluation import pair_figures, pair_sums, pair_values
from grmlight.evaluation.pair_figures import BINS, FIGURES
from tests.batches import pair_batch
from tests.reference.packing import pack_groups


def mean(values):
    return math.fsum(values) / len(values)


def deviation(values):
    return math.sqrt(mean([(value - mean(values)) ** 2 for value in values]))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def ece(pairs):
    """Sure and unsure labels alike: the preferred side's probability against the share of its label."""
    bins = [[] for _ in range(BINS)]
    for better, worse, label, *_ in pairs:
        probability = sigmoid(abs(better - worse))
        share = 0.5 if better == worse else label if better > worse else 1 - label
        width = 0.5 / BINS
        place = next(b for b in reversed(range(BINS)) if probability >= 0.5 + b * width)
        bins[place].append(share - probability)
    return sum(len(each) / len(pairs) * abs(mean(each)) for each in bins if each)


def reference(pairs, responses=None):
    """Every figure of (better, worse, label, tokens of better, tokens of worse); ties enter the calibration alone.

    `responses` are (reward, tokens), where they are not just those of the pairs.
    """
    sure = [(b > w) if label > 0.5 else (b < w) for b, w, label, *_ in pairs if label != 0.5 and b != w]
    halves = sum(label != 0.5 and b == w for b, w, label, *_ in pairs)
    sides = [(b, w) if label > 0.5 else (w, b) for b, w, label, *_ in pairs if label != 0.5]
    better, worse = [side[0] for side in sides], [side[1] for side in sides]
    responses = responses or [(p[0], p[3]) for p in pairs] + [(p[1], p[4]) for p in pairs]
    rewards, tokens = [response[0] for response in responses], [response[1] for response in responses]
    covariance = mean([(r - mean(rewards)) * (t - mean(tokens)) for r, t in zip(rewards, tokens, strict=True)])
    return {
        "accuracy": (sum(sure) + halves / 2) / (len(sure) + halves),
        "margin": mean([b - w for b, w in zip(better, worse, strict=True)]),
        "chosen_reward": mean(better),
        "chosen_reward_std": deviation(better),
        "rejected_reward": mean(worse),
        "rejected_reward_std": deviation(worse),
        "ece": ece(pairs),
        "length_correlation": covariance / deviation(rewards) / deviation(tokens),
    }


def draw(seed, count, scale=1.0, shift=0.0):
    numbers = random.Random(seed)
    labels = [1.0, 1.0, 1.0, 0.5, 0.0, 0.75]
    pairs = [
        (
            torch.tensor(shift + scale * numbers.gauss(0, 1)).item(),
            torch.tensor(shift + scale * numbers.gauss(0, 1)).item(),
            numbers.choice(labels),
            numbers.randint(1, 40),
            numbers.randint(1, 40),
        )
        for _ in range(count)
    ]
    return [*pairs[:-1], (pairs[0][0], pairs[0][0], 1.0, 3, 4)]  # the last one: equal rewards


def packs(pairs, sizes, **options):
    for size in sizes:
        part, pairs = pairs[:size], pairs[size:]
        rewards_N = torch.tensor([reward for pair in part for reward in pair[:2]], dtype=torch.float32)
        scored = [tokens for pair in part for tokens in pair[3:]]
        yield pair_values(rewards_N, pair_batch(size, labels=[pair[2] for pair in part], scored=scored, **options))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (30.0, 0.0), (0.01, 100.0)])
def test_every_figure_is_its_definition(scale, shift):
    pairs = draw(3, 60, scale, shift)
    found = pair_figures(pair_sums(list(packs(pairs, [1, 20, 39]))).tolist())
    expected = reference(pairs)
    assert found.keys() == expected.keys() == set(FIGURES)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-7, abs=1e-9), name


def test_sums_of_packs_add_up_and_fillers_and_weights_enter_nothing():
    pairs = draw(5, 30)
    whole = pair_sums(list(packs(pairs, [30])))
    parts = pair_sums(list(packs(pairs[:10], [10], weights=[7.0] * 10))) + pair_sums(list(packs(pairs[10:], [4, 16])))
    filler = pair_sums(list(packs(draw(6, 3), [3], counts=[0.0] * 3)))
    torch.testing.assert_close(parts + filler, whole, rtol=1e-12, atol=1e-12)


def test_what_is_not_defined_is_left_out():
    empty = pair_sums(list(packs(draw(6, 3), [3], counts=[0.0] * 3)))
    assert pair_figures(empty.tolist()) == {}
    alike = pair_sums(list(packs([(0.1, 0.1, 0.5, 4, 4)] * 7, [7])))
    found = pair_figures(alike.tolist())
    assert found == {"ece": 0.0}
    side = pair_sums(list(packs([(0.1, 0.4, 0.0, 4, 4)], [1])))
    assert pair_figures(side.tolist())["margin"] == pytest.approx(0.3)


def test_figures_of_rankings_count_each_comparison_and_each_response_once():
    numbers = random.Random(2)
    groups = [[[number] * numbers.randint(2, 9) for number in range(size)] for size in (3, 2, 4)]
    comparisons = [[(0, 1), (2, 0), (2, 1)], [(1, 0)], [(a, b) for a in range(4) for b in range(a + 1, 4)]]
    labels = [[1.0, 0.5, 0.75], [1.0], [0.5, 1.0, 1.0, 0.25, 1.0, 1.0]]
    batch = pack_groups(groups, [[0] * len(group) for group in groups], comparisons, labels)
    rewards = [torch.tensor(numbers.gauss(0, 1)).item() for _ in range(9)]
    found = pair_figures(pair_sums([pair_values(torch.tensor(rewards), batch)]).tolist())
    tokens = [len(sequence) - 1 for group in groups for sequence in group]
    first = [0, 3, 5]
    flat = [
        (*(rewards[start + side] for side in pair), label, 0, 0)
        for start, pairs, weights in zip(first, comparisons, labels, strict=True)
        for pair, label in zip(pairs, weights, strict=True)
    ]
    for name, value in reference(flat, list(zip(rewards, tokens, strict=True))).items():
        assert found[name] == pytest.approx(value, rel=1e-7, abs=1e-9), name


def test_rewards_that_are_not_finite_are_no_crash():
    for bad in (math.nan, math.inf, -math.inf):
        sums = pair_sums(list(packs([(bad, 1.0, 1.0, 4, 5), (0.0, 1.0, 1.0, 4, 5)], [2])))
        assert not math.isfinite(pair_figures(sums.tolist())["margin"])
