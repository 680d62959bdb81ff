"""The router's error: a share of the groups whose category it knows."""

import dataclasses

import pytest
import torch

from grmlight.evaluation.router_error import RouterError
from grmlight.models.experts import ExpertsOutputs
from tests.batches import outputs_of, pair_batch


def update(metric, routed, labels, counts=None):
    batch = pair_batch(len(routed), counts=counts)
    known = None if labels is None else torch.tensor(labels)
    outputs = ExpertsOutputs(torch.zeros(2 * len(routed)), task_G=torch.tensor(routed))
    metric.update(outputs, dataclasses.replace(batch, task_G=known))


def test_groups_of_unknown_categories_and_repeated_ones_are_apart():
    metric = RouterError()
    update(metric, [0, 1, 2, 0], [0, 2, 2, -1])
    update(metric, [1, 1, 1], [1, 0, -1], counts=[1.0, 0.0, 0.0])
    found = metric.compute()
    assert found["router_error"] == pytest.approx(1 / 4)
    assert found["unseen_categories"] == 1


def test_without_categories_or_routes_there_is_no_error():
    metric = RouterError()
    update(metric, [0, 1], None)
    metric.update(outputs_of([1.0, 0.0]), pair_batch(1))
    update(metric, [0, 1], [-1, -1])
    assert metric.compute() == {"unseen_categories": torch.tensor(2.0)}
