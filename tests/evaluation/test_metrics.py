"""Metrics against plain counting, whatever the cut into batches."""

import math

import pytest
import torch

from grmlight.evaluation import (
    LongerWins,
    PairAccuracy,
    PairCount,
    RewardMargin,
    RewardMean,
    pair_metrics,
    wilson_interval,
)
from grmlight.models.outputs import Outputs
from tests.batches import pair_batch


def outputs(rewards):
    return Outputs(torch.tensor(rewards))


def test_accuracy_counts_ties_as_one_half_and_leaves_fillers_out():
    metric = PairAccuracy()
    metric.update(outputs([1.0, 0.0, 0.0, 1.0, 2.0, 2.0]), pair_batch(3))
    metric.update(outputs([1.0, 0.0]), pair_batch(1, counts=[0.0]))
    assert float(metric.compute()) == pytest.approx(0.5)


def test_the_cut_into_batches_does_not_matter():
    rewards = torch.randn(14).tolist()
    whole, parts = pair_metrics(""), pair_metrics("")
    whole.update(outputs(rewards), pair_batch(7))
    parts.update(outputs(rewards[:12]), pair_batch(6))
    parts.update(outputs(rewards[12:]), pair_batch(1))
    for name, value in whole.compute().items():
        torch.testing.assert_close(value, parts.compute()[name])


def test_margin_mean_and_ruler():
    batch = pair_batch(2, scored=[3, 1, 2, 2])
    for metric, expected in ((RewardMargin(), 1.5), (RewardMean(), 2.25), (LongerWins(), 0.75)):
        metric.update(outputs([4.0, 2.0, 2.0, 1.0]), batch)
        assert float(metric.compute()) == expected


def test_wilson_interval_is_the_published_one():
    low, high = wilson_interval(0.9, 10)
    assert (low, high) == (pytest.approx(0.5958, abs=1e-4), pytest.approx(0.9821, abs=1e-4))
    assert all(map(math.isnan, wilson_interval(0.5, 0)))


def test_a_label_below_one_half_prefers_the_other_side_and_a_tie_does_not_count():
    batch = pair_batch(3, labels=[0.0, 0.5, 0.9], scored=[1, 2, 9, 1, 3, 1])
    accuracy, ruler, pairs = PairAccuracy(), LongerWins(), PairCount()
    for metric in (accuracy, ruler, pairs):
        metric.update(outputs([0.0, 1.0, 5.0, 0.0, 0.0, 1.0]), batch)
    assert float(accuracy.compute()) == 0.5
    assert float(ruler.compute()) == 1.0
    assert float(pairs.compute()) == 2.0
