"""Whole DPO runs of a fully trained model: reference log-probs from the store and from a copy, on 1 and 2 processes."""

import json
import logging
import math
import os
import random
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests import reference_run
from tests.train_run import losses

WORDS = "the a red green cat dog runs sleeps under over house tree why who said it was not so very well indeed".split()
DDP = ["--devices", "2"]
FSDP2 = [*DDP, "--fsdp"]


@pytest.fixture(scope="module")
def material(tmp_path_factory, byte_tokenizer):
    """17 pairs of unequal lengths: 6 steps of 3 an epoch, the last with 2."""
    folder = tmp_path_factory.mktemp("material")
    draw = random.Random(7)

    def text(low, high):
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    rows = [{"prompt": text(1, 12), "chosen": text(1, 20), "rejected": text(1, 20)} for _ in range(17)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--data", str(folder / "pairs.jsonl"), "--tokenizer", str(byte_tokenizer)]


class Runs:
    """Runs with a folder and a cache of their own. Each gives back its folder and what was said."""

    def __init__(self, folder, material):
        self.folder, self.material = folder, material

    def here(self, name, *arguments):
        """In this process."""
        said = Said()
        with pytest.MonkeyPatch.context() as patch, said:
            patch.setenv("GRMLIGHT_CACHE", str(self.folder / "cache"))
            reference_run.main(["--out", str(self.folder / name), *self.material, *arguments])
        return self.folder / name, said.text

    def apart(self, name, *arguments, expect=0):
        """In one process of its own, or in two."""
        environment = os.environ | {
            "GRMLIGHT_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
        }
        out = self.folder / name
        command = [sys.executable, "-m", "tests.reference_run", "--out", str(out), *self.material, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == expect, done.stderr[-3000:]
        return out, done.stderr

    @property
    def kept(self):
        return list((self.folder / "cache").rglob("reference_logps-*"))

    @property
    def leftovers(self):
        return list((self.folder / "cache").rglob(".grmlight-tmp-*"))


class Said(logging.Handler):
    """What Lightning's logger is given, with or without handlers of its own."""

    text = ""

    def emit(self, record):
        self.text += record.getMessage() + "\n"

    def __enter__(self):
        logging.getLogger("lightning.pytorch").addHandler(self)

    def __exit__(self, *_):
        logging.getLogger("lightning.pytorch").removeHandler(self)


@pytest.fixture
def runs(material, tmp_path):
    return Runs(tmp_path, material)


@pytest.fixture(scope="module")
def copied(material, tmp_path_factory):
    """One process with a frozen copy: what all others should give."""
    runs = Runs(tmp_path_factory.mktemp("copied"), material)
    out, said = runs.here("copy", "--reference", "copy")
    assert "reference log-probs" not in said
    assert not runs.kept
    return out


def largest_difference(one, other):
    left, right = (load_file(out / "weights.safetensors") for out in (one, other))
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def assert_same_training(one, other):
    left, right = losses(one), losses(other)
    assert left.keys() == right.keys() == set(range(1, 21))
    for step, row in left.items():
        for term in ("train/loss", "train/preference", "train/direct_preference"):
            assert right[step][term] == pytest.approx(row[term], abs=1e-5 * row["train/loss"]), (step, term)
    assert largest_difference(one, other) < 1e-4


def assert_bit_equal(one, other):
    assert losses(one) == losses(other)
    assert largest_difference(one, other) == 0


def test_the_store_trains_as_the_copy_does(runs, copied):
    out, said = runs.here("first")
    assert_same_training(copied, out)
    assert losses(out)[1]["train/direct_preference"] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(out)[20]["train/direct_preference"] != pytest.approx(math.log(2), abs=1e-3)
    assert said.count("computed, and kept in") == 1
    assert len(runs.kept) == 1
    again, said = runs.here("again")
    assert "found in" in said
    assert "computed" not in said
    assert_bit_equal(again, out)


@pytest.mark.parametrize(
    "where", [pytest.param(DDP, marks=pytest.mark.slow, id="ddp"), pytest.param(FSDP2, id="fsdp2")]
)
def test_two_processes_share_the_pass(where, runs, copied):
    """Three pairs a step in four packs: one share is always empty, and no rank may wait for ever."""
    out, said = runs.apart("two", *where)
    assert_same_training(copied, out)
    assert losses(out)[1]["train/direct_preference"] == pytest.approx(math.log(2), abs=1e-6)
    assert said.count("computed, and kept in") == 1
    assert len(runs.kept) == 1
    assert not runs.leftovers


@pytest.mark.slow
@pytest.mark.parametrize("where", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_two_processes_find_what_they_kept(where, runs):
    first, _ = runs.apart("first", *where)
    again, said = runs.apart("again", *where)
    assert "found in" in said
    assert "computed" not in said
    assert_bit_equal(first, again)


@pytest.mark.slow
def test_the_copy_may_be_sharded(runs, copied):
    out, said = runs.apart("copy", "--reference", "copy", *FSDP2)
    assert "reference log-probs" not in said
    assert_same_training(copied, out)


@pytest.mark.parametrize(
    "where", [pytest.param([], id="one process"), pytest.param(FSDP2, marks=pytest.mark.slow, id="fsdp2")]
)
def test_a_killed_pass_leaves_a_folder_that_the_next_run_uses(where, runs, copied):
    out, _ = runs.apart("killed", *where, "--die_at_forward", "5", expect=-9)
    assert not (out / "losses.jsonl").exists()
    assert not runs.kept
    assert not runs.leftovers
    out, said = runs.apart("next", *where) if where else runs.here("next")
    assert "computed, and kept in" in said
    assert_same_training(copied, out)


def test_a_run_killed_while_it_writes_leaves_a_name_that_the_next_run_sweeps(runs, copied):
    runs.apart("killed", "--die_writing", expect=-9)
    assert not runs.kept
    (left,) = runs.leftovers
    out, said = runs.here("next")
    assert "computed, and kept in" in said
    assert not left.exists()
    assert not runs.leftovers
    assert_same_training(copied, out)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("lost", [False, True], ids=["found", "computed again"])
def test_a_resumed_run_has_the_same_reference(lost, runs):
    """Weights have moved when the run is resumed; the reference is still the start model."""
    whole, _ = runs.here("whole")
    out, _ = runs.here("cut", "--steps", "9")
    if lost:
        runs.kept[0].unlink()
    rest, said = runs.here("rest", "--resume", str(out / "checkpoints" / "last.ckpt"))
    assert ("computed, and kept" if lost else "found in") in said
    assert losses(out) | losses(rest) == losses(whole)
    assert largest_difference(whole, rest) == 0


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True], ids=["found", "computed again"])
@pytest.mark.parametrize("where", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_a_killed_and_resumed_run_has_the_same_reference(where, lost, runs):
    whole, _ = runs.apart("whole", *where)
    out, _ = runs.apart("cut", *where, "--die_at_step", "8", expect=-9)
    if lost:
        runs.kept[0].unlink()
    _, said = runs.apart("cut", *where, "--resume", str(out / "checkpoints" / "last.ckpt"))
    assert ("computed, and kept" if lost else "found in") in said
    assert_bit_equal(whole, out)


def test_mixed_precision_has_a_reference_of_its_own(runs):
    runs.here("full")
    out, said = runs.here("mixed", "--precision", "bf16-mixed")
    assert "computed, and kept in" in said
    assert len(runs.kept) == 2
    copied, _ = runs.here("copy", "--precision", "bf16-mixed", "--reference", "copy")
    assert losses(out)[1]["train/loss"] == pytest.approx(losses(copied)[1]["train/loss"], rel=1e-2)
