"""The loader: what an epoch holds, on how many ranks and packs soever, and where it goes on."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch

from grmlight.data import GroupLoader, PrepareOptions, TrainingLoader, prepare

GROUPS = 43


@pytest.fixture(scope="module")
def store(tmp_path_factory, byte_tokenizer):
    """43 pairs of very unequal lengths."""
    folder = tmp_path_factory.mktemp("loader")
    rows = [{"prompt": f"why {i}", "chosen": "so " * (1 + i * 7 % 19), "rejected": f"not {i}"} for i in range(GROUPS)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare(str(folder / "pairs.jsonl"), str(byte_tokenizer), PrepareOptions(), folder / "store").store


class Spy:
    """A store that notes which groups are read."""

    def __init__(self, store):
        self.store, self.costs = store, store.costs
        self.read = []

    def __len__(self):
        return len(self.store)

    def pack(self, groups, counts):
        self.read.append(groups.tolist())
        return self.store.pack(groups, counts)


def content(batch):
    """What tells packs apart."""
    return (batch.step, batch.micro_batch, batch.groups_in_step, batch.row_C.tolist(), batch.input_ids_T.tolist())


def counted_rows(batches):
    rows = Counter()
    for batch in batches:
        for row, group in zip(batch.row_C.tolist(), batch.group_C.tolist(), strict=True):
            rows[row] += batch.count_G[group].item()
    return rows


PLACES = [(1, 1), (1, 3), (2, 1), (2, 2), (3, 4), (8, 2)]


@pytest.mark.parametrize(("ranks", "packs"), PLACES)
@pytest.mark.parametrize("seed", [None, 5])
def test_every_group_comes_once_an_epoch(store, ranks, packs, seed):
    everything = [
        batch for rank in range(ranks) for batch in GroupLoader(store, 8, rank, ranks, packs, seed=seed)
    ]  # fmt: skip
    assert counted_rows(everything) == Counter(range(1, GROUPS + 1))


@pytest.mark.parametrize(("ranks", "packs"), PLACES)
def test_every_rank_gets_the_same_number_of_packs_in_the_short_last_step_too(store, ranks, packs):
    shares = [list(TrainingLoader(store, 8, rank, ranks, packs, seed=1)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {6 * packs}
    places = [[(batch.step, batch.micro_batch) for batch in share] for share in shares]
    assert all(each == [(step, pack) for step in range(6) for pack in range(packs)] for each in places)
    assert all(batch.groups >= 1 for share in shares for batch in share)
    last = [batch for share in shares for batch in share if batch.step == 5]
    assert {batch.groups_in_step for batch in last} == {3}
    assert sum(float(batch.count_G.sum()) for batch in last) == 3
    whole = [batch for share in shares for batch in share if batch.step == 0]
    assert {batch.groups_in_step for batch in whole} == {8}


def test_ranks_and_packs_share_out_the_same_steps(store):
    """The deal changes with ranks and packs; what a step holds does not."""

    def steps(ranks, packs):
        found = {}
        for rank in range(ranks):
            for batch in GroupLoader(store, 8, rank, ranks, packs, seed=3):
                counted = batch.count_G[batch.group_C] > 0
                found.setdefault(batch.step, set()).update(batch.row_C[counted].tolist())
        return found

    one = steps(1, 1)
    assert all(steps(ranks, packs) == one for ranks, packs in PLACES)


def test_the_order_follows_seed_and_epoch(store):
    loader = TrainingLoader(store, 8, seed=1)
    first, second = ([batch.row_C.tolist() for batch in loader] for _ in range(2))
    assert first != second
    assert [batch.row_C.tolist() for batch in TrainingLoader(store, 8, seed=1)] == first
    assert [batch.row_C.tolist() for batch in TrainingLoader(store, 8, seed=2)] != first
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(1, GROUPS + 1))


def test_an_evaluation_begins_at_the_beginning_wherever_the_last_one_stopped(store):
    """Sanity checks and `limit_val_batches` stop early."""
    loader = GroupLoader(store, 8)
    for _ in range(2):
        assert sorted(next(iter(loader)).row_C.tolist()) == list(range(1, 9))
    assert not hasattr(loader, "state_dict")


@pytest.mark.parametrize(("ranks", "packs"), [(1, 1), (2, 3)])
def test_another_loader_goes_on_from_every_step(store, ranks, packs):
    """Two epochs; the state is taken whenever the last pack of a step is out, before any further one is asked for."""
    for rank in range(ranks):
        place = {"rank": rank, "ranks": ranks, "packs": packs, "seed": 4}
        loader = TrainingLoader(store, 8, **place)
        batches, states = [], []
        for _ in range(2):
            for batch in loader:
                batches.append(content(batch))
                if batch.micro_batch + 1 == packs:
                    states.append(json.loads(json.dumps(loader.state_dict())))
        assert [state["epoch"] * 6 + state["steps"] for state in states] == list(range(1, 13))
        for done, state in enumerate(states[:-1], start=1):
            other = TrainingLoader(store, 8, **place)
            other.load_state_dict(state)
            rest = [content(batch) for _ in range(state["epoch"], 2) for batch in other]
            assert rest == batches[done * packs :]


def test_states_are_equal_on_every_rank(store):
    loaders = [TrainingLoader(store, 8, rank, 3, 2, seed=4) for rank in range(3)]
    for shares in zip(*loaders, strict=True):
        if shares[0].micro_batch == 1:
            assert loaders[0].state_dict() == loaders[1].state_dict() == loaders[2].state_dict()


def test_the_state_stays_within_a_step(store):
    loader = TrainingLoader(store, 8, packs=3, seed=4)
    seen = [(batch.micro_batch, loader.state_dict()["steps"]) for batch, _ in zip(loader, range(6), strict=False)]
    assert seen == [(0, 0), (1, 0), (2, 1), (0, 1), (1, 1), (2, 2)]


def test_going_on_reads_nothing_of_what_is_done(store):
    loader = TrainingLoader(Spy(store), 8, seed=4)
    loader.load_state_dict(loader.state_dict() | {"epoch": 7, "steps": 4})
    (first, *_) = loader
    assert first.step == 4
    assert len(loader.store.read) == 2


def test_ranks_and_packs_may_change_on_the_way(store):
    before = TrainingLoader(store, 8, seed=4)
    for batch in before:
        if batch.step == 2:
            break
    after = [TrainingLoader(store, 8, rank, 2, 2, seed=4) for rank in range(2)]
    for loader in after:
        loader.load_state_dict(before.state_dict())
    rest = counted_rows(batch for loader in after for batch in loader)
    done = counted_rows(batch for batch in TrainingLoader(store, 8, seed=4) if batch.step <= 2)
    assert rest + done == Counter(range(1, GROUPS + 1))


def test_another_number_of_pairs_a_step_is_refused(store):
    state = TrainingLoader(store, 8, seed=4).state_dict()
    with pytest.raises(ValueError, match="pairs_per_step=8, this run has 9"):
        TrainingLoader(store, 9, seed=4).load_state_dict(state)
    with pytest.raises(ValueError, match="seed=4, this run has 5"):
        TrainingLoader(store, 8, seed=5).load_state_dict(state)
    with pytest.raises(ValueError, match="pairs=1000, this run has"):
        TrainingLoader(store, 8, seed=4).load_state_dict(state | {"pairs": 1000})


@pytest.mark.parametrize("pairs", [0, -1])
def test_a_step_holds_at_least_one_pair(store, pairs):
    with pytest.raises(ValueError, match="pairs_per_step must be at least 1"):
        GroupLoader(store, pairs)


@pytest.mark.parametrize(("pairs_per_step", "steps"), [(1, 43), (43, 1), (44, 1), (42, 2), (8, 6)])
def test_its_length_is_in_packs(store, pairs_per_step, steps):
    loader = TrainingLoader(store, pairs_per_step, packs=2, seed=0)
    assert (loader.steps_per_epoch, len(loader)) == (steps, 2 * steps)
    assert len(list(loader)) == 2 * steps


def test_shares_are_balanced_by_tokens(store):
    shares = [list(GroupLoader(store, GROUPS, rank, 2)) for rank in range(2)]
    tokens = [sum(len(batch.input_ids_T) for batch in share) for share in shares]
    assert abs(tokens[0] - tokens[1]) <= int(np.max(store.costs))


def test_batches_hold_what_the_store_says(store):
    for batch in GroupLoader(store, 8, packs=2, seed=0):
        assert batch.layout.bounds[-1] == len(batch.input_ids_T) == len(batch.positions_T)
        assert batch.count_G.dtype == batch.weight_C.dtype == torch.float32
        assert batch.responses == 2 * batch.groups
