"""What is not finite: named with its step and rows, or left out as if the step had not been; and nothing of it kept."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests import poisoned_run
from tests.poisoned_run import BAD_ROWS, STEPS, bad_steps

FIRST = min(bad_steps()) + 1


@pytest.fixture(scope="module")
def start(tmp_path_factory, byte_tokenizer):
    """Starts a run in this process, or in several."""
    folder = tmp_path_factory.mktemp("poisoned")
    poisoned_run.write_pairs(folder / "pairs.jsonl")
    names = iter(range(99))
    environment = {"GRMLIGHT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}

    def run(*arguments, processes=1, expect=0):
        out = folder / str(next(names))
        given = ["--out", str(out), "--data", str(folder / "pairs.jsonl"), "--tokenizer", str(byte_tokenizer)]
        given += ["--devices", str(processes), *arguments]
        if processes == 1 and not expect:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("GRMLIGHT_CACHE", environment["GRMLIGHT_CACHE"])
                poisoned_run.main(given)
            return out
        command = [sys.executable, "-m", "tests.poisoned_run", *given]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == expect, done.stderr[-3000:]
        (out / "stderr").write_text(done.stderr)
        return out

    return run


def weights(out):
    return load_file(out / "weights.safetensors")


def lines(out):
    return {row["step"]: row for row in map(json.loads, (out / "lines.jsonl").read_text().splitlines())}


def in_training(row):
    return {name: value for name, value in row.items() if name.startswith("train/") and name != "train/skipped"}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def reference(start):
    return start("--do", "reference")


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient", "overflow"])
def test_skip_leaves_a_step_out_as_if_it_had_not_been(kind, start, reference):
    skipped = start("--do", "skip", "--kind", kind)
    assert same(weights(skipped), weights(reference))
    found, expected = lines(skipped), lines(reference)
    assert len(bad_steps()) >= 2
    for step in range(1, STEPS + 1):
        assert found[step]["train/skipped"] == len({bad for bad in bad_steps() if bad < step})
        if step - 1 in bad_steps():
            assert not {"train/loss", "train/margin"} & found[step].keys()
        else:
            assert in_training(found[step]) == in_training(expected[step])
            assert found[step]["train/gradient_norm"] > 0


def test_a_skipped_step_moves_something_if_it_is_not_skipped(start, reference):
    """The comparison above has teeth."""
    assert not same(weights(start()), weights(reference))


@pytest.mark.parametrize(
    "strategy", [pytest.param([], id="ddp", marks=pytest.mark.slow), pytest.param(["--fsdp"], id="fsdp2")]
)
def test_skip_is_the_same_on_all_ranks(strategy, start):
    arguments = [*strategy, "--log_every", "12"]
    skipped = start("--do", "skip", "--kind", "nan", *arguments, processes=2)
    expected = start("--do", "reference", *arguments, processes=2)
    assert same(weights(skipped), weights(expected))
    assert lines(skipped)[STEPS]["train/skipped"] == len(bad_steps())
    said = (skipped / "stderr").read_text()
    assert "on_nonfinite: skip waits for the device once a step" in said
    assert f"step {FIRST}: these terms are not finite: loss, poison, gradient_norm" in said


@pytest.mark.parametrize("kind", ["nan", "gradient", "overflow"])
def test_stop_names_the_first_bad_step_and_its_rows_and_keeps_what_was_finite(kind, start):
    with pytest.raises(ValueError, match=f"step {FIRST}: these terms are not finite: ") as error:
        start("--kind", kind, "--log_every", "5")
    text = str(error.value)
    terms = text.split(": ")[2].split(" (", maxsplit=1)[0].split(", ")
    rows = {int(row) for row in text.split("rows ")[1].split(")", maxsplit=1)[0].split(", ")}
    if kind == "gradient":
        assert terms == ["gradient_norm"]
        assert len(rows) == 4
    else:
        assert {"nan": {"loss", "poison"}, "overflow": {"loss", "preference", "rewards"}}[kind] <= set(terms)
    assert rows & BAD_ROWS


@pytest.mark.parametrize("clip", ["1.0", "0"])
def test_no_checkpoint_holds_what_is_not_finite(clip, start, tmp_path):
    """Every step is saved, and lines are far apart: the checkpoint itself must refuse."""
    name = "gradient_norm" if clip == "1.0" else "weights are no longer finite"
    with pytest.raises(ValueError, match=f"step {FIRST}: .*{name}"):
        start("--kind", "gradient", "--checkpoints", "--log_every", "12", "--clip", clip, "--out", str(tmp_path))
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert len(kept) == FIRST - 1
    for path in kept:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


def test_stop_finds_the_rows_of_another_rank(start):
    out = start("--kind", "nan", "--log_every", "5", processes=2, expect=1)
    found = (line.partition("ValueError: step ")[2] for line in (out / "stderr").read_text().splitlines())
    said = [f"step {line}" for line in found if line]
    assert said
    for line in said:
        assert f"step {FIRST}: these terms are not finite: loss, poison" in line
        assert {int(row) for row in line.split("rows ")[1].split(")")[0].split(", ")} & BAD_ROWS
    assert len(set(said)) == 1
