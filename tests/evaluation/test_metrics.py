"""Metrics over whole sets, whatever the cut into batches."""

import math

import pytest
import torch

from grmlight.evaluation import LongerWins, PairFigures, pair_metrics
from grmlight.models.outputs import Outputs
from tests.batches import pair_batch
from tests.reference.packing import pack_groups


def outputs(rewards):
    return Outputs(torch.tensor(rewards))


def test_accuracy_counts_ties_as_one_half_and_leaves_fillers_out():
    metric = PairFigures()
    metric.update(outputs([1.0, 0.0, 0.0, 1.0, 2.0, 2.0]), pair_batch(3))
    metric.update(outputs([1.0, 0.0]), pair_batch(1, counts=[0.0]))
    assert float(metric.compute()["accuracy"]) == pytest.approx(0.5)


def test_the_cut_into_batches_does_not_matter():
    rewards = torch.randn(14).tolist()
    whole, parts = pair_metrics("val/"), pair_metrics("val/")
    whole.update(outputs(rewards), pair_batch(7, scored=list(range(1, 15))))
    parts.update(outputs(rewards[:12]), pair_batch(6, scored=list(range(1, 13))))
    parts.update(outputs(rewards[12:]), pair_batch(1, scored=[13, 14]))
    found = parts.compute()
    assert {"val/accuracy", "val/ece", "val/longer_wins", "val/pairs"} <= found.keys()
    for name, value in whole.compute().items():
        torch.testing.assert_close(value, found[name])


def test_a_label_below_one_half_prefers_the_other_side_and_a_tie_does_not_count():
    metrics = pair_metrics("")
    batch = pair_batch(3, labels=[0.0, 0.5, 0.9], scored=[1, 2, 9, 1, 3, 1])
    metrics.update(outputs([0.0, 1.0, 5.0, 0.0, 0.0, 1.0]), batch)
    found = metrics.compute()
    assert [float(found[name]) for name in ("accuracy", "longer_wins", "pairs")] == [0.5, 1.0, 2.0]


def test_equal_lengths_count_one_half_and_nothing_is_nan():
    ruler = LongerWins()
    ruler.update(outputs([0.0] * 4), pair_batch(2, scored=[3, 1, 2, 2]))
    assert float(ruler.compute()["longer_wins"]) == 0.75
    empty = pair_metrics("")
    empty.update(outputs([0.0, 0.0]), pair_batch(1, counts=[0.0]))
    found = empty.compute()
    assert math.isnan(float(found["longer_wins"]))
    assert "accuracy" not in found


def test_comparisons_of_a_group_are_counted_and_so_are_the_groups_they_come_from():
    batch = pack_groups(
        [[[1, 5], [1, 6, 7], [1, 8, 9, 9]], [[2, 3], [2, 4]], [[3, 4], [3, 5, 5]]],
        comparisons=[[(0, 1), (0, 2), (2, 1)], [(0, 1)], [(1, 0)]],
        labels=[[1.0, 1.0, 1.0], [0.5], [1.0]],
        counts=[1.0, 1.0, 0.0],
    )
    metrics = pair_metrics("")
    metrics.update(outputs([3.0, 2.0, 4.0, 0.0, 1.0, 0.0, 1.0]), batch)
    found = metrics.compute()
    assert (float(found["pairs"]), float(found["groups"])) == (3.0, 1.0)
    assert float(found["accuracy"]) == pytest.approx(2 / 3)
    assert float(found["longer_wins"]) == pytest.approx(1 / 3)
