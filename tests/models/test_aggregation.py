"""The three aggregations by their definitions, in float64."""

import math
import random
import statistics

import pytest
import torch

from grmlight.models.aggregation import aggregate, disagreement

DRAW = random.Random(3)
REWARDS = [[DRAW.gauss(0, 2) for _ in range(11)] for _ in range(5)]
COLUMNS = list(zip(*REWARDS, strict=True))
REWARDS_KN = torch.tensor(REWARDS, dtype=torch.float64)


def test_the_mean_is_the_mean():
    expected = [statistics.fmean(column) for column in COLUMNS]
    assert aggregate(REWARDS_KN, "mean", 9.0).tolist() == pytest.approx(expected, rel=1e-14)


def test_wco_is_the_minimum():
    assert aggregate(REWARDS_KN, "wco", 9.0).tolist() == [min(column) for column in COLUMNS]


@pytest.mark.parametrize("weight", [0.1, 0.5, 3.0])
def test_uwo_subtracts_the_population_variance(weight):
    expected = [statistics.fmean(column) - weight * statistics.pvariance(column) for column in COLUMNS]
    assert aggregate(REWARDS_KN, "uwo", weight).tolist() == pytest.approx(expected, rel=1e-13)
    sample = [statistics.fmean(column) - weight * statistics.variance(column) for column in COLUMNS]
    assert all(abs(one - other) > 1e-3 for one, other in zip(expected, sample, strict=True))


def test_a_lambda_of_0_is_0():
    assert torch.equal(aggregate(REWARDS_KN, "uwo", 0), aggregate(REWARDS_KN, "mean", 1.0))


def test_disagreement_is_the_population_variance():
    expected = [statistics.pvariance(column) for column in COLUMNS]
    assert disagreement(REWARDS_KN).tolist() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("aggregation", "weight"), [("mean", 0.0), ("wco", 0.0), ("uwo", 0.5)])
def test_gradients_are_those_of_the_definition(aggregation, weight):
    rewards_KN = REWARDS_KN[:, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda rewards: aggregate(rewards, aggregation, weight), rewards_KN)


def test_members_that_agree_are_no_ensemble():
    same_KN = torch.full((4, 2), math.pi, dtype=torch.float64)
    for aggregation in ("mean", "wco", "uwo"):
        assert aggregate(same_KN, aggregation, 0.5).tolist() == pytest.approx([math.pi] * 2)
