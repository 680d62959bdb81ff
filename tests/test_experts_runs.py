"""Whole runs of experts in processes of their own: DDP and FSDP2 against one, and resuming within and at each phase."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file

from grmlight.training.resume import find_checkpoint, read_checkpoint
from tests.test_training_runs import WORDS, largest_difference
from tests.train_run import TASKS, losses, train

STEPS = (4, 5, 4)
"""Of the phases, as `train_run` has them."""


@pytest.fixture(scope="module")
def material(tmp_path_factory, byte_tokenizer):
    """60 pairs of two tasks, a third of them labeled for a capability; a category decides nothing but the route."""
    draw, folder = random.Random(5), tmp_path_factory.mktemp("material")

    def text(low, high):
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    rows = []
    for index in range(60):
        task = draw.choice(list(TASKS))
        row = {"prompt": f"{task} {text(1, 9)}", "chosen": text(1, 15), "rejected": text(1, 15), "category": task}
        rows.append(row | ({"capability": draw.choice(TASKS[task])} if index % 3 == 0 else {}))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = "--experts --lora --epochs 1 --save_every 1000".split()
    return ["--data", str(folder / "pairs.jsonl"), "--tokenizer", str(byte_tokenizer), *options]


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory):
    """A run of one process, with dropout."""
    out = tmp_path_factory.mktemp("alone")
    train(out, *material, "--dropout", "0.1")
    return out


@pytest.fixture(scope="module")
def steady(material, tmp_path_factory):
    """A run of one process without dropout."""
    out = tmp_path_factory.mktemp("steady")
    train(out, *material)
    return out


@pytest.mark.parametrize(
    "options",
    [[], ["--fsdp"], pytest.param(["--fsdp", "--padded", "--recompute"], marks=pytest.mark.slow)],
    ids=["ddp", "fsdp2", "fsdp2-padded-recompute"],
)
def test_processes_give_the_losses_and_weights_of_one(options, material, steady, tmp_path):
    train(tmp_path, *material, *options, ranks=2)
    one, two = losses(steady), losses(tmp_path)
    assert len(one) == sum(STEPS)
    assert one.keys() == two.keys()
    for step, row in one.items():
        assert ("train/router" in row) == (step <= STEPS[0])
        for term in row.keys() & {"train/loss", "train/preference", "train/router"}:
            assert two[step][term] == pytest.approx(row[term], rel=1e-5), (step, term)
    assert largest_difference(tmp_path, steady) < 1e-4


def test_what_does_not_train_yet_stays_bit_identical_on_several_processes(material, tmp_path):
    """DDP wants a gradient of everything; one of zero would let weight decay move it, and start its moments."""
    for name, ranks in (("one", 1), ("two", 2)):
        train(tmp_path / name, *material, "--stop_after", "task", ranks=ranks)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    later = {name for name in one if ".adapters.expert." in name or name.startswith(("head.experts", "head.mixtures"))}
    assert len(later) > 20
    assert all(torch.equal(one[name], two[name]) for name in later)
    checkpoint = read_checkpoint(find_checkpoint(str(tmp_path / "two"), training=True), training=True)
    assert {f"model.{name}" for name in later} == set(checkpoint["grmlight_unstepped"])
    (states,) = checkpoint["optimizer_states"]
    assert len(states["state"]) == len(states["param_groups"][0]["params"]) - len(later)


@pytest.mark.parametrize("kill_at", [2, 4, 7, 9, 11])
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(kill_at, material, alone, tmp_path):
    """Within and at the end of each phase; bit for bit, with dropout and weight decay."""
    common = [*material, "--dropout", "0.1", "--save_every", "1"]
    train(tmp_path, *common, "--kill_at", str(kill_at + 1), expect=-9)
    checkpoint = find_checkpoint(str(tmp_path), training=True)
    train(tmp_path, *common, "--resume", str(checkpoint))
    assert losses(tmp_path) == losses(alone)
    found, expected = (load_file(out / "weights.safetensors") for out in (tmp_path, alone))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [
        ([], 1),
        pytest.param(["--fsdp"], 2, marks=pytest.mark.slow),
        pytest.param(["--fsdp", "--one_file"], 2, marks=pytest.mark.slow),
    ],
    ids=["one", "fsdp2", "fsdp2-one-file"],
)
def test_phases_one_at_a_time_are_the_phases_of_one_run(strategy, ranks, material, steady, tmp_path):
    """Each run leaves a checkpoint where its phase ends, and the next one goes on from it."""
    common = [*material, *strategy]
    train(tmp_path, *common, "--stop_after", "task", ranks=ranks)
    found = find_checkpoint(str(tmp_path), training=True)
    assert read_checkpoint(found, training=True)["grmlight_phase"] == "task"
    assert max(losses(tmp_path)) == STEPS[0]
    train(tmp_path, *common, "--stop_after", "experts", "--resume", str(found), ranks=ranks)
    found = find_checkpoint(str(tmp_path), training=True)
    assert max(losses(tmp_path)) == sum(STEPS[:2])
    train(tmp_path, *common, "--resume", str(found), ranks=ranks)
    assert max(losses(tmp_path)) == sum(STEPS)
    tolerance = 1e-4 if ranks > 1 else 0.0
    assert largest_difference(tmp_path, steady) <= tolerance
