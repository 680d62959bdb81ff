"""epoch_order, deal_step and deal_steps against the oracle_plan, pack_bins against TRL's packer."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grmlight._data_rs import DataError, deal_step, deal_steps, epoch_order, pack_bins
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


def packs_of(dealt):
    """Positions and counts of each pack, as lists."""
    positions, counts, bounds = dealt
    ends = itertools.pairwise(bounds)
    return [(positions[start:end].tolist(), counts[start:end].tolist()) for start, end in ends]


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 25), st.integers(1, 9), st.integers(1, 9))
def test_many_steps_are_dealt_as_the_oracle_deals_each(costs, groups_per_step, ranks, accumulate):
    expected = []
    for first in range(0, len(costs), groups_per_step):
        for share in oracle_plan.deal_step(costs[first : first + groups_per_step], ranks, accumulate):
            expected += [([first + position for position in positions], counts) for positions, counts in share]
    dealt = deal_steps(np.array(costs), groups_per_step, ranks, accumulate)
    assert packs_of(dealt) == expected
    assert [array.dtype for array in dealt] == [np.int64, np.float32, np.int64]


@pytest.mark.parametrize(
    ("costs", "numbers", "message"),
    [
        ([], (1, 1, 1), "at least one group"),
        ([1], (0, 1, 1), "at least one group"),
        ([1], (1, 0, 1), "0 ranks with 1 packs"),
        ([1], (1, 1, 0), "1 ranks with 0 packs"),
        ([1], (1, 2**40, 2**40), "cannot be dealt to"),
        ([-1], (1, 1, 1), "cost must be from 0 to 4294967295, got -1"),
        ([2**63 - 1, 2**63 - 1], (2, 1, 1), "got 9223372036854775807"),
        ([1] * 1000, (1, 2**20, 1), "deal fewer steps"),
    ],
)
def test_what_cannot_be_dealt_at_once(costs, numbers, message):
    with pytest.raises(DataError, match=message):
        deal_steps(np.array(costs, np.int64), *numbers)


@pytest.mark.parametrize("groups", [2**32, 2**63])
def test_an_order_that_cannot_be(groups):
    with pytest.raises(DataError, match="32 bits must count them"):
        epoch_order(groups, 0, 0)


def realistic(count):
    """Tokens of pairs, most of them near the median and a few long."""
    drawn = np.exp(np.random.default_rng(0).normal(np.log(700), 0.7, count))
    return np.clip(drawn, 20, 4096).astype(np.int64)


@pytest.mark.filterwarnings("ignore")
def test_bins_are_no_more_than_trls_and_nearly_full():
    """TRL sorts its rows by itself; the rows of a window are those of one of its batches."""
    packing = pytest.importorskip("trl.data_utils").pack_dataset
    datasets = pytest.importorskip("datasets")
    costs, window, capacity = realistic(9000), 4000, 4096
    _, bounds = pack_bins(costs, capacity, window, 0, 0)
    trls = 0
    for first in range(0, len(costs), window):
        rows = datasets.Dataset.from_dict({"input_ids": [[0] * int(cost) for cost in costs[first : first + window]]})
        trls += len(packing(rows, capacity, strategy="bfd", map_kwargs={"batch_size": window}))
    assert len(bounds) - 1 <= trls
    assert costs.sum() / ((len(bounds) - 1) * capacity) >= 0.995


@settings(deadline=None)
@given(st.lists(st.integers(0, 90), max_size=80), st.integers(90, 300), st.integers(1, 50), SEEDS, SEEDS)
def test_bins_hold_every_group_once_and_no_more_than_they_can(costs, capacity, window, seed, epoch):
    positions, bounds = pack_bins(np.array(costs, np.int64), capacity, window, seed, epoch)
    assert sorted(positions) == list(range(len(costs)))
    assert all(sum(costs[p] for p in positions[a:b]) <= capacity for a, b in itertools.pairwise(bounds))


@pytest.mark.parametrize(
    ("costs", "capacity", "window", "message"),
    [
        ([1, 11], 10, 5, "a group of 11 tokens does not fit a pack of 10"),
        ([-1], 10, 5, "a group of -1 tokens"),
        ([1], 0, 5, "tokens of a pack must be from 1"),
        ([1], 2**40, 5, "tokens of a pack must be from 1"),
        ([1], 10, 0, "a window needs at least one group"),
    ],
)
def test_what_cannot_be_packed(costs, capacity, window, message):
    with pytest.raises(DataError, match=message):
        pack_bins(np.array(costs, np.int64), capacity, window, 0, 0)
