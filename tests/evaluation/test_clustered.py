"""Metrics with intervals: against plain Python, over ranks and batches, and the interval's own promise."""

import math
import random

import numpy as np
import pytest
import torch

from grmlight.evaluation import (
    BestOfK,
    Calibration,
    LengthCorrelation,
    LongerWinsRuler,
    PairAccuracy,
    PairFigures,
    SectionAverage,
)
from grmlight.evaluation.clustered import percentile_interval, resampled_sums
from grmlight.models.outputs import Outputs
from tests.batches import pair_batch


def ints(*values):
    return torch.tensor(values)


def slow_bootstrap(rows, figure, prompts, resamples, seed):
    """Draw prompts with replacement, collect their rows, compute the figure anew; one draw after the other."""
    by_prompt = [
        [row for row, prompt in zip(rows, prompts, strict=True) if prompt == key] for key in sorted({*prompts})
    ]
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = generator.integers(len(by_prompt), size=len(by_prompt))
        values.append(figure([row for key in drawn for row in by_prompt[key]]))
    return np.percentile(values, [2.5, 97.5])


def test_accuracy_and_its_interval_are_those_of_the_slow_bootstrap():
    draw = random.Random(3)
    rows = [(draw.choice([0.0, 1.0, 2.0]), draw.choice([0.0, 1.0, 2.0])) for _ in range(60)]
    prompts = [draw.randrange(17) for _ in rows]
    better, worse = torch.tensor(rows, dtype=torch.float64).T
    for equal in (0.0, 0.5):

        def accuracy(chosen, equal=equal):
            return math.fsum(1 if b > w else equal * (b == w) for b, w in chosen) / len(chosen)

        metric = PairAccuracy(20, resamples=50, seed=7, equal=equal)
        metric.update(better[:25], worse[:25], torch.tensor(prompts[:25]))
        metric.update(better[25:], worse[25:], torch.tensor(prompts[25:]))
        found = metric.interval()
        assert found.value == pytest.approx(accuracy(rows), abs=1e-12)
        assert found.n == 60
        expected = slow_bootstrap(rows, accuracy, prompts, 50, 7)
        assert [found.low, found.high] == pytest.approx(expected, abs=1e-12)


def test_clusters_widen_the_interval_and_independent_rows_have_the_known_width():
    """400 rows at 0.7: 1.96 sqrt(0.7 0.3 / 400) = 0.045 either way; in 40 prompts that agree, sqrt(10) times that."""
    draw = np.random.default_rng(0)
    right_P = torch.tensor(draw.permutation([1.0] * 28 + [0.0] * 12))

    def half_width(prompt_C):
        metric = PairAccuracy(400, resamples=4000)
        metric.update(right_P.repeat_interleave(10), torch.full((400,), 0.5), prompt_C)
        found = metric.interval()
        return (found.high - found.low) / 2

    assert half_width(torch.arange(400)) == pytest.approx(0.045, abs=0.003)
    assert half_width(torch.arange(40).repeat_interleave(10)) == pytest.approx(0.045 * math.sqrt(10), abs=0.012)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        rate_P = draw.beta(3, 2, size=60)
        right_C = torch.tensor((draw.random((60, 3)) < rate_P[:, None]).reshape(-1)).double()
        metric = PairAccuracy(60, resamples=200, seed=seed)
        metric.update(right_C, torch.full((180,), 0.5), torch.arange(60).repeat_interleave(3))
        found = metric.interval()
        covered += found.low <= 0.6 <= found.high
    assert 178 <= covered <= 199


def test_resampled_sums_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    table = np.arange(12.0).reshape(4, 3)
    whole = resampled_sums(table, 9, seed=2)
    monkeypatch.setattr("grmlight.evaluation.clustered._AT_ONCE", 8)
    assert np.array_equal(whole, resampled_sums(table, 9, seed=2))
    assert not np.array_equal(whole, resampled_sums(table, 9, seed=3))
    assert resampled_sums(np.zeros((0, 3)), 5, 0).shape == (5, 3)


def test_a_figure_of_one_prompt_or_none_has_no_interval():
    metric = PairAccuracy(3)
    metric.update(torch.ones(2), torch.zeros(2), ints(1, 1))
    found = metric.interval()
    assert found.value == 1.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    empty = PairAccuracy(3).interval
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(empty().value)
    assert all(map(math.isnan, percentile_interval(np.array([math.nan]))))


def test_calibration_and_correlation_are_those_of_training():
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(80, generator=generator).double() * 2
    lengths = torch.randint(1, 30, (80,), generator=generator)
    figures = PairFigures()
    figures.update(Outputs(rewards), pair_batch(40, scored=lengths.tolist()))
    expected = figures.compute()
    prompts = torch.arange(40)
    calibration = Calibration(40)
    calibration.update(rewards[::2], rewards[1::2], prompts)
    assert calibration.interval().value == pytest.approx(float(expected["ece"]), abs=1e-7)
    correlation = LengthCorrelation(40)
    correlation.update(rewards, lengths, prompts.repeat_interleave(2))
    found = correlation.interval()
    assert found.value == pytest.approx(float(expected["length_correlation"]), abs=1e-7)
    assert found.value == pytest.approx(np.corrcoef(rewards.numpy(), lengths.numpy())[0, 1], abs=1e-12)
    assert found.low < found.value < found.high


def test_correlation_is_not_defined_without_spread():
    metric = LengthCorrelation(2)
    metric.update(torch.tensor([0.3, 0.3, 0.3]), ints(1, 2, 3), ints(0, 0, 1))
    assert math.isnan(metric.interval().value)


def test_a_weighted_group_counts_once_in_calibration():
    once, often = Calibration(1), Calibration(1)
    once.update(torch.tensor([2.0]), torch.tensor([0.0]), ints(0))
    often.update(torch.full((3,), 2.0), torch.zeros(3), ints(0, 0, 0), torch.full((3,), 1 / 3))
    assert often.interval().value == pytest.approx(once.interval().value)
    assert once.interval().value == pytest.approx(1 - 1 / (1 + math.exp(-2)))


def test_best_of_k_by_hand():
    groups = [([3.0, 1, 2, 0], 1), ([1.0, 1, 0, 0], 1), ([0.0, 5, 1, 1], 1), ([2.0, 2, 2, 2], 1), ([1.0, 4, 4], 2)]
    points = [1, 0.5, 0, 0.25, 0.5]
    metric = BestOfK(5)
    rewards = torch.tensor([value for values, _ in groups for value in values])
    correct = torch.tensor([place < right for values, right in groups for place in range(len(values))])
    group = torch.tensor([number for number, (values, _) in enumerate(groups) for _ in values])
    metric.update(rewards, correct, group, torch.arange(5))
    assert metric.interval().value == pytest.approx(sum(points) / 5)


def test_the_ruler_counts_equal_lengths_one_half():
    metric = LongerWinsRuler(3)
    metric.update(ints(3, 2, 2), ints(1, 2, 5), ints(0, 1, 2))
    assert metric.interval().value == pytest.approx(0.5)


def test_section_average_leaves_out_what_has_no_rows():
    sections = {"one": {"a": 3.0, "b": 1.0}, "two": {"c": 5.0}, "three": {"d": 1.0}}
    metric = SectionAverage(sections, 6)
    # a: 1 of 2, b: none of 1, d: 1 of 1; an equal pair is wrong.
    metric.update(torch.tensor([1.0, 0, 0, 1]), torch.tensor([0.0, 0, 1, 0]), ints(0, 1, 2, 3), ints(0, 0, 1, 3))
    assert metric.interval().value == pytest.approx(((3 * 0.5 + 0) / 4 + 1) / 2)


@pytest.mark.parametrize("metric_class", [PairAccuracy, Calibration])
def test_sums_of_ranks_add_up(metric_class):
    generator = torch.Generator().manual_seed(4)
    better, worse = torch.randn(2, 30, generator=generator)
    prompts = torch.randint(0, 9, (30,), generator=generator)
    whole, one, other = (metric_class(9) for _ in range(3))
    whole.update(better, worse, prompts)
    one.update(better[::2], worse[::2], prompts[::2])
    other.update(better[1::2], worse[1::2], prompts[1::2])
    one.sums_PK += other.sums_PK
    assert one.interval() == pytest.approx(whole.interval(), abs=1e-12)
