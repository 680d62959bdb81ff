"""Whole runs in processes of their own: one process against two, and a killed run against one left alone."""

import json
import os
import random
import subprocess
import sys

import pytest
from safetensors.torch import load_file

WORDS = "the a red green cat dog runs sleeps under over house tree why who said it was not so very well indeed".split()


@pytest.fixture(scope="module")
def material(tmp_path_factory, byte_tokenizer):
    """43 pairs of unequal lengths and weights: 8 steps of 6 an epoch, the last with 1."""
    folder = tmp_path_factory.mktemp("material")
    draw = random.Random(7)

    def text(low, high):
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    rows = [
        {"prompt": text(1, 12), "chosen": text(1, 20), "rejected": text(1, 20), "weight": draw.choice([0.25, 1.0, 3.0])}
        for _ in range(43)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--data", str(folder / "pairs.jsonl"), "--tokenizer", str(byte_tokenizer)]


def run(out, material, *arguments, expect=0, cache):
    environment = os.environ | {"GRMLIGHT_CACHE": str(cache), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "tests.train_run", "--out", str(out), *material, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == expect, done.stderr[-3000:]


def losses(out):
    rows = map(json.loads, (out / "losses.jsonl").read_text().splitlines())
    return {row["step"]: {name: row[name] for name in row if not name.startswith("speed/")} for row in rows}


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    run(out, material, cache=out)
    return out


def largest_difference(left, right):
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.mark.parametrize("strategy", [[], ["--fsdp"]], ids=["ddp", "fsdp2"])
def test_two_processes_give_the_losses_and_weights_of_one(strategy, material, alone, tmp_path):
    run(tmp_path, material, "--devices", "2", *strategy, cache=tmp_path)
    one, two = losses(alone), losses(tmp_path)
    assert len(one) == 24
    assert one.keys() == two.keys()
    for step, row in one.items():
        assert two[step]["train/loss"] == pytest.approx(row["train/loss"], rel=1e-5)
        for term in ("train/preference", "train/text_generation", "train/score_l2"):
            assert two[step][term] == pytest.approx(row[term], abs=1e-5 * row["train/loss"]), (step, term)
    weights = load_file(alone / "weights.safetensors"), load_file(tmp_path / "weights.safetensors")
    assert largest_difference(*weights) < 1e-4


def test_the_mean_of_each_pack_is_told_apart(material, alone, tmp_path):
    """The comparison above has teeth: the usual mistake moves the weights far beyond its tolerance."""
    run(tmp_path, material, "--mean", "--devices", "2", cache=tmp_path)
    weights = load_file(alone / "weights.safetensors"), load_file(tmp_path / "weights.safetensors")
    assert largest_difference(*weights) > 1e-3


@pytest.fixture(scope="module")
def with_dropout(material, tmp_path_factory):
    out = tmp_path_factory.mktemp("with_dropout")
    run(out, material, "--dropout", "0.2", "--log_every", "2", cache=out)
    return out


@pytest.mark.parametrize("kill_at", ["9", "17", "23"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(kill_at, material, with_dropout, tmp_path):
    """Checkpoints come every 3 steps: after step 9 in the second epoch, 15 in it too, and 21 in the third.

    Lines are logged every 2 steps, so a checkpoint may fall between two of them.
    """
    whole, cut = with_dropout, tmp_path / "cut"
    run(cut, material, "--dropout", "0.2", "--log_every", "2", "--kill_at", kill_at, cache=tmp_path, expect=-9)
    last = cut / "checkpoints" / "last.ckpt"
    run(cut, material, "--dropout", "0.2", "--log_every", "2", "--resume", str(last), cache=tmp_path)
    assert losses(cut) == losses(whole)
    weights = load_file(whole / "weights.safetensors"), load_file(cut / "weights.safetensors")
    assert largest_difference(*weights) == 0.0


def test_a_resumed_run_may_accumulate_otherwise(material, alone, tmp_path):
    run(tmp_path, material, "--kill_at", "7", cache=tmp_path, expect=-9)
    last = tmp_path / "checkpoints" / "last.ckpt"
    run(tmp_path, material, "--accumulate", "3", "--resume", str(last), cache=tmp_path)
    one, other = losses(alone), losses(tmp_path)
    assert one.keys() == other.keys()
    for step, row in one.items():
        assert other[step]["train/loss"] == pytest.approx(row["train/loss"], rel=1e-5)


def test_weights_are_the_same_in_any_packing(material, alone, tmp_path):
    run(tmp_path, material, "--accumulate", "4", cache=tmp_path)
    weights = load_file(alone / "weights.safetensors"), load_file(tmp_path / "weights.safetensors")
    assert largest_difference(*weights) < 1e-4
