"""TokenLoader: packs filled up to a number of tokens, every group once an epoch, and where it goes on."""

import json
from collections import Counter

import lightning.pytorch as L
import pytest
from lightning.pytorch.trainer.states import TrainerFn

from grmlight.data import PairDataModule, PrepareOptions, TokenLoader, TrainingLoader, prepare
from tests.data.test_loader import content, counted_rows

GROUPS = 61
TOKENS = 100


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "pairs.jsonl"
    rows = [{"prompt": f"why {i}", "chosen": "so " * (1 + i * 7 % 19), "rejected": f"not {i}"} for i in range(GROUPS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def store(source, byte_tokenizer):
    return prepare(str(source), str(byte_tokenizer), PrepareOptions(), source.with_name("store")).store


def token_loader(store, **options):
    return TokenLoader(store, TOKENS, **{"window": 20, "seed": 4} | options)


@pytest.mark.parametrize(("ranks", "packs"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 4)])
def test_every_group_comes_once_an_epoch_on_every_number_of_ranks(store, ranks, packs):
    for epoch in range(3):
        shares = []
        for rank in range(ranks):
            loader = token_loader(store, rank=rank, ranks=ranks, packs=packs)
            loader.load_state_dict(loader.state_dict() | {"epoch": epoch})
            length = len(loader)
            shares.append(list(loader))
            assert len(shares[-1]) == length
        assert counted_rows(batch for share in shares for batch in share) == Counter(range(1, GROUPS + 1))
        for together in zip(*shares, strict=True):
            assert len({(batch.step, batch.micro_batch, batch.groups_in_step) for batch in together}) == 1
        steps = {}
        for share in shares:
            for batch in share:
                assert len(batch.input_ids_T) <= TOKENS
                assert batch.groups >= 1
                counted = steps.setdefault(batch.step, [batch.groups_in_step, 0])
                counted[1] += int(batch.count_G.sum())
        assert all(said == found for said, found in steps.values())


def test_bins_are_those_of_one_rank_whatever_the_ranks(store):
    def bins(ranks, packs):
        loaders = [token_loader(store, rank=rank, ranks=ranks, packs=packs) for rank in range(ranks)]
        batches = [batch for loader in loaders for batch in loader if not batch.repeated]
        return sorted(sorted(batch.row_C.tolist()) for batch in batches)

    assert bins(1, 1) == bins(2, 3) == bins(8, 1)


def test_epochs_are_packed_anew(store):
    loader = token_loader(store)
    first, second = ([batch.row_C.tolist() for batch in loader] for _ in range(2))
    assert {frozenset(rows) for rows in first} != {frozenset(rows) for rows in second}
    assert [batch.row_C.tolist() for batch in token_loader(store)] == first


@pytest.mark.parametrize(("ranks", "packs"), [(1, 1), (2, 3)])
def test_another_loader_goes_on_from_every_step(store, ranks, packs):
    for rank in range(ranks):
        place = {"rank": rank, "ranks": ranks, "packs": packs}
        loader = token_loader(store, **place)
        batches, states = [], []
        for _ in range(2):
            for batch in loader:
                batches.append(content(batch))
                if batch.micro_batch + 1 == packs:
                    states.append(json.loads(json.dumps(loader.state_dict())))
        for done, state in enumerate(states[:-1], start=1):
            other = token_loader(store, **place)
            other.load_state_dict(state)
            rest = [content(batch) for _ in range(state["epoch"], 2) for batch in other]
            assert rest == batches[done * packs :]


def test_the_bins_of_a_step_stay_within_an_epoch(store):
    loader = token_loader(store, packs=2)
    for batch in loader:
        if batch.step == 1:
            break
    state = loader.state_dict()
    assert (state["steps"], state["bins"]) == (1, 2)
    same = token_loader(store, rank=1, ranks=2)
    same.load_state_dict(state)
    assert next(iter(same)).step == 1
    others = [token_loader(store, rank=rank, ranks=3) for rank in range(3)]
    with pytest.raises(ValueError, match="an epoch of 2 packs a step over all devices, this run has 3; set trainer"):
        others[0].load_state_dict(state)
    for loader in others:
        loader.load_state_dict(state | {"epoch": 5, "steps": 0, "bins": 0})
    assert counted_rows(batch for loader in others for batch in loader) == Counter(range(1, GROUPS + 1))


def test_a_checkpoint_of_another_way_is_refused(store):
    pairs, tokens = TrainingLoader(store, 8, seed=4).state_dict(), token_loader(store).state_dict()
    with pytest.raises(ValueError, match=f"tokens_per_pack=None, this run has {TOKENS}"):
        token_loader(store).load_state_dict(pairs)
    with pytest.raises(ValueError, match="pairs_per_step=None, this run has 8"):
        TrainingLoader(store, 8, seed=4).load_state_dict(tokens)
    with pytest.raises(ValueError, match="seed=4, this run has 5"):
        token_loader(store, seed=5).load_state_dict(tokens)


def test_the_imbalance_is_that_of_the_packs(store):
    for loader in (token_loader(store, ranks=3, packs=2), TrainingLoader(store, 8, 0, 3, 2, seed=4)):
        tokens = {}
        for rank in range(3):
            loader.rank = rank
            for deal in loader.deals():
                tokens.setdefault(deal.step, [0, 0, 0])[rank] += int(store.costs[deal.groups].sum())
        steps = [max(loads) * 3 / sum(loads) for loads in tokens.values()]
        totals = [sum(loads) for loads in zip(*tokens.values(), strict=True)]
        assert loader.imbalance() == pytest.approx((sum(steps) / len(steps), max(totals) * 3 / sum(totals)))


def test_a_group_that_does_not_fit_is_named(source, byte_tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path))
    data = PairDataModule(str(source), tokenizer=str(byte_tokenizer), tokens_per_pack=20)
    with pytest.raises(ValueError, match=r"pairs\.jsonl: row \d+ has \d+ tokens, more than tokens_per_pack 20; set"):
        data.setup("fit")
    with pytest.raises(ValueError, match="tokens_per_pack must be at least 1, got 0"):
        PairDataModule(str(source), tokenizer=str(byte_tokenizer), tokens_per_pack=0).setup("fit")


def test_steps_are_counted_in_pairs_or_in_tokens():
    with pytest.raises(ValueError, match="pairs_per_step and tokens_per_pack; set one of them to null"):
        PairDataModule(tokens_per_pack=4096, pairs_per_step=16)


def test_the_data_module_gives_it(source, byte_tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path))
    data = PairDataModule(str(source), tokenizer=str(byte_tokenizer), tokens_per_pack=TOKENS, seed=3)
    data.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", accumulate_grad_batches=3)
    data.trainer.state.fn = TrainerFn.FITTING
    data.setup("fit")
    loader = data.train_dataloader()
    assert isinstance(loader, TokenLoader)
    assert (loader.packs, loader.tokens_per_pack, loader.seed) == (3, TOKENS, 3)
    assert counted_rows(loader) == Counter(range(1, GROUPS + 1))
    assert abs(data.pairs_per_step - GROUPS / loader.steps_per_epoch) < 3
    assert data.train_dataloader() is loader
    assert vars(data.trainer)["reload_dataloaders_every_n_epochs"] == 1
