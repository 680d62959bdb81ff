"""RewardBench 2's score: against plain Python, and by hand."""

import math
import random

import pytest
import torch

from grmlight.evaluation import BestOfK, RewardBench2Average, TiesScore


def slow_ties(prompts):
    """`prompts`: for each (ref, tied), each a pair of lists of rewards (right, wrong), or None."""

    def accurate(rewards):
        return all(good > bad for good in rewards[0] for bad in rewards[1])

    def gap(rewards):
        return min(rewards[0]) - max(rewards[1])

    def mean(values):
        return sum(values) / len(values)

    refs = [ref for ref, _ in prompts if ref]
    tieds = [tied for _, tied in prompts if tied]
    both = [(gap(ref), gap(tied), max(tied[0]) - min(tied[0])) for ref, tied in prompts if ref and tied]
    normalized = []
    for ref, tied, spread in both:
        smaller = min(ref, tied)
        if spread:
            normalized.append(math.tanh(smaller / spread - 1))
        else:
            normalized.append(math.copysign(1, smaller) if smaller else 0.0)
    return (
        0.3 * mean([accurate(each) for each in tieds])
        + 0.3 * mean([accurate(each) for each in refs])
        + 0.2 * mean([tied > spread for _, tied, spread in both])
        + 0.2 * mean([min(ref, tied) > spread for ref, tied, spread in both])
        + 0.01 * mean(normalized)
    )


def columns(prompts):
    rewards, correct, group, tied, prompt = [], [], [], [], []
    for number, kinds in enumerate(prompts):
        for kind, found in enumerate(kinds):
            if found is None:
                continue
            rewards += [*found[0], *found[1]]
            correct += [True] * len(found[0]) + [False] * len(found[1])
            group += [len(tied)] * (len(found[0]) + len(found[1]))
            tied.append(bool(kind))
            prompt.append(number)
    return torch.tensor(rewards, dtype=torch.float64), *map(torch.tensor, (correct, group, tied, prompt))


def random_prompts(seed, count=12):
    draw = random.Random(seed)

    def rewards(right, wrong):
        # Whole numbers, so that equal rewards and spreads of 0 come up.
        return [draw.randint(3, 5) for _ in range(right)], [draw.randint(0, 4) for _ in range(wrong)]

    found = [(rewards(1, draw.randint(1, 6)), rewards(draw.randint(2, 7), draw.randint(1, 9))) for _ in range(count)]
    return [(None, found[0][1]), (found[1][0], None), *found[2:]]


@pytest.mark.parametrize("seed", range(6))
def test_the_score_is_the_slow_one(seed):
    prompts = random_prompts(seed)
    rewards, correct, group, tied, prompt = columns(prompts)
    metric = TiesScore(len(prompts))
    first = group < 9
    metric.update(rewards[first], correct[first], group[first], tied[:9], prompt[:9])
    metric.update(rewards[~first], correct[~first], group[~first] - 9, tied[9:], prompt[9:])
    found = metric.interval()
    assert found.value == pytest.approx(slow_ties(prompts), abs=1e-12)
    assert found.low <= found.value <= found.high
    assert found.n == len(tied)


def test_the_score_by_hand():
    """A perfect prompt: gap 8 above spread 1 both ways. A hopeless one: nothing but wrong."""
    perfect = ([9.0], [1.0]), ([9.0, 10.0], [1.0])
    hopeless = ([0.0], [1.0]), ([0.0, 2.0], [1.0])
    metric = TiesScore(1)
    metric.update(*columns([perfect]))
    assert metric.interval().value == pytest.approx(1 + 0.01 * math.tanh(7))
    metric = TiesScore(2)
    metric.update(*columns([perfect, hopeless]))
    assert metric.interval().value == pytest.approx(0.5 + 0.01 * (math.tanh(7) + math.tanh(-1.5)) / 2)


def test_equal_right_answers_count_whole_and_nothing_over_nothing_counts_zero():
    metric = TiesScore(2)
    metric.update(*columns([(([3.0], [1.0]), ([3.0, 3.0], [1.0])), (([1.0], [1.0]), ([1.0, 1.0], [1.0]))]))
    assert metric.interval().value == pytest.approx(0.5 + 0.01 * 0.5)


def test_the_average_is_the_mean_of_the_subsets():
    prompts = random_prompts(1)
    draw = torch.Generator().manual_seed(2)
    rewards, correct, group, tied, prompt = columns(prompts)
    rows = len(tied)
    best = torch.randn(20, 4, generator=draw).double()
    subset = torch.tensor([0] * 8 + [1] * 12)
    metric = RewardBench2Average(["Math", "Safety", "Focus"], len(prompts) + 20)
    metric.update(
        torch.cat([rewards, best.flatten()]),
        torch.cat([correct, torch.tensor([True, False, False, False]).repeat(20)]),
        torch.cat([group, torch.arange(20).repeat_interleave(4) + rows]),
        torch.cat([tied, torch.zeros(20, dtype=torch.bool)]),
        torch.cat([torch.full((rows,), 3), subset]),
        torch.cat([prompt, torch.arange(20) + len(prompts)]),
    )
    shares = [float((best[subset == number].argmax(1) == 0).double().mean()) for number in (0, 1)]
    found = metric.interval()
    assert found.value == pytest.approx((sum(shares) + slow_ties(prompts)) / 3, abs=1e-12)
    assert found.n == rows + 20
    assert found.low < found.value < found.high
    alone = BestOfK(20)
    alone.update(
        best.flatten(), torch.tensor([True, False, False, False]).repeat(20), torch.arange(20).repeat_interleave(4),
        torch.arange(20),
    )  # fmt: skip
    assert alone.interval().value == pytest.approx((8 * shares[0] + 12 * shares[1]) / 20)
