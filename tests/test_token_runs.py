"""Whole runs whose packs are filled up to a number of tokens: on 1 and 2 processes, killed and going on."""

import pytest

from grmlight.data import PrepareOptions, TokenLoader, prepare
from grmlight.training.resume import newest_checkpoint
from tests.test_training_runs import assert_same_losses, largest_difference, write_material
from tests.train_run import losses, train

TOKENS, WINDOW = 210, 9
STEPS = [10, 11, 10]
"""Of the three epochs: each is packed anew."""


@pytest.fixture(scope="module")
def material(tmp_path_factory, byte_tokenizer):
    return [
        *write_material(tmp_path_factory.mktemp("material"), byte_tokenizer),
        "--tokens",
        TOKENS,
        "--window",
        WINDOW,
    ]


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    train(out, *material)
    return out


def test_every_epoch_has_all_its_steps(material, alone, tmp_path):
    store = prepare(material[1], material[3], PrepareOptions(max_length=200), tmp_path / "store").store
    loader = TokenLoader(store, TOKENS, WINDOW, packs=2, seed=0)
    assert [len(list(loader)) // 2 for _ in STEPS] == STEPS
    assert sorted(losses(alone)) == list(range(1, sum(STEPS) + 1))


def test_processes_give_the_losses_and_weights_of_one(material, alone, tmp_path):
    """Two packs a step, on one process or on two."""
    train(tmp_path, *material, "--accumulate", 1, ranks=2)
    assert_same_losses(tmp_path, alone)
    assert largest_difference(tmp_path, alone) < 1e-4


@pytest.mark.parametrize("step", [2, 10, 15, 20, 21, 24])
def test_a_killed_run_goes_on_bit_for_bit(step, material, alone, tmp_path):
    """Within the first epoch, at its end, and in epochs that have other numbers of steps than the first."""
    train(tmp_path, *material, "--kill_at", step, "--save_every", 1, expect=-9)
    found = newest_checkpoint(tmp_path, training=True)
    train(tmp_path, *material, "--resume", found)
    assert losses(tmp_path) == losses(alone)
    assert largest_difference(tmp_path, alone) == 0.0
