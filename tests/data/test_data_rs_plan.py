"""epoch_order and deal_step against the oracle_plan."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grmlight._data_rs import DataError, deal_step, epoch_order
from tests.data import oracle_plan

SEEDS = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(st.integers(0, 500), SEEDS, SEEDS)
def test_an_order_is_the_oracles_permutation(groups, seed, epoch):
    order = epoch_order(groups, seed, epoch)
    assert order.dtype == np.int64
    assert order.tolist() == oracle_plan.epoch_order(groups, seed, epoch)
    assert sorted(order) == list(range(groups))


def test_orders_never_change():
    assert epoch_order(10, 42, 0).tolist() == [2, 0, 1, 6, 7, 8, 4, 5, 3, 9]
    assert epoch_order(10, 42, 1).tolist() == [8, 6, 1, 5, 7, 4, 2, 0, 3, 9]


def test_places_are_uniform():
    where = np.zeros((5, 5))
    for epoch in range(5000):
        where[np.arange(5), epoch_order(5, 1, epoch)] += 1
    assert np.abs(where / 5000 - 0.2).max() < 0.03


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 9))
def test_a_deal_is_the_oracles(costs, ranks, accumulate):
    dealt = deal_step(np.array(costs), ranks, accumulate)
    plain = [[(positions.tolist(), counts.tolist()) for positions, counts in share] for share in dealt]
    assert plain == oracle_plan.deal_step(costs, ranks, accumulate)
    real = [p for share in plain for positions, counts in share if counts[0] for p in positions]
    assert sorted(real) == list(range(len(costs)))
    assert all(
        counts.dtype == np.float32 and positions.dtype == np.int64 for share in dealt for positions, counts in share
    )


def test_a_deal_is_balanced():
    costs = np.random.default_rng(0).integers(100, 1000, 512)
    loads = [sum(costs[positions].sum() for positions, _ in share) for share in deal_step(costs, 8, 4)]
    assert max(loads) < 1.01 * min(loads)


@pytest.mark.parametrize(("costs", "ranks", "accumulate"), [([], 1, 1), ([1], 0, 1), ([1], 1, 0), ([-1], 1, 1)])
def test_what_cannot_be_dealt(costs, ranks, accumulate):
    with pytest.raises(DataError):
        deal_step(np.array(costs, np.int64), ranks, accumulate)
