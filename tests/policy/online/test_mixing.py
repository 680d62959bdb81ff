"""The plain mixer."""

import pytest
import torch

from grmlight.policy.online.mixing import KL, Minibatch, WeightedSum

BATCH = Minibatch(torch.tensor([0, 0, 1]), {"a": torch.zeros(2), "b": torch.zeros(2)}, kl_coefficient=0.1)


def test_a_weighted_sum_takes_the_kl_by_its_coefficient():
    advantages = {KL: torch.tensor([1.0, 2.0, 3.0]), "a": torch.tensor([1.0, 0.0, 0.0]), "b": torch.ones(3)}
    mixed = WeightedSum({"b": 2.0}).mix(advantages, BATCH)
    torch.testing.assert_close(mixed, torch.tensor([3.1, 2.2, 2.3]))


def test_weights_of_nothing_and_of_the_kl_are_refused():
    with pytest.raises(ValueError, match="weights for c"):
        WeightedSum({"c": 1.0}).setup([KL, "a"])
    with pytest.raises(ValueError, match="kl.coefficient"):
        WeightedSum({KL: 1.0})
