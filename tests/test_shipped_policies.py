"""Every shipped policy configuration, run by its own command for a few steps; and the papers' chain, run whole."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.test_configs import POLICIES

REPOSITORY = Path(__file__).parent.parent
SMALL = {"SFT_STEPS": 2, "TRAINED": 40, "MEASURED": 3, "SAMPLES": 8, "MAX_N": 4, "PROXY_EPOCHS": 1}


def environment(folder, **more):
    """A cache of its own, one thread, and this checkout's package."""
    own = {"GRMLIGHT_CACHE": folder / "cache", "OMP_NUM_THREADS": 1, "PYTHONPATH": REPOSITORY}
    return os.environ | {name: str(value) for name, value in (own | more).items()}


def run(command, folder, **more):
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        timeout=280,
    )


def printed(text, start):
    """What follows on the one line that starts like this."""
    (found,) = [line.removeprefix(start) for line in text.splitlines() if line.startswith(start)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_a_shipped_policy_runs_and_says_what_came_of_it(name, tmp_path):
    few = ["--trainer.max_steps", 4, "--checkpoint.every_n_train_steps", 2, "--trainer.enable_progress_bar", "false"]
    command = [sys.executable, "-m", "grmlight", "fit", "--config", REPOSITORY / f"configs/{name}.yaml", *few]
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    # Warnings of packages begin with the file that warns.
    assert "Warning" not in done.stderr
    assert "site-packages" not in done.stderr

    directory = tmp_path / "runs" / name / "version_0"
    model = printed(done.stdout, "model: ")
    assert tmp_path / model == directory / "model"
    assert f"--policy {model} " in printed(done.stdout, "sample from it: ")
    assert " to 4: " in printed(done.stdout, "answers, step ")
    AutoModelForCausalLM.from_pretrained(directory / "model")
    assert (directory / "checkpoints" / "last.ckpt").exists()
    assert (directory / "learning_curve.png").exists()
    with (directory / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert all(map(math.isfinite, losses))


@pytest.fixture
def checkout(tmp_path):
    """The scripts and configurations in a place where they may write."""
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    (tmp_path / "grmlight").symlink_to(REPOSITORY / "grmlight")
    return tmp_path


def chain(folder, **more):
    return run(["bash", folder / "configs" / "chain.sh", folder / "out"], folder, **more)


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_the_chain_runs_whole(checkout):
    done = chain(checkout, GRMLIGHT=f"{sys.executable} -m grmlight", **SMALL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    out = checkout / "out"
    assert (checkout / printed(done.stdout, "policy model: ") / "model.safetensors").exists()
    assert (checkout / printed(done.stdout, "proxy model: ") / "model.safetensors").exists()

    assert len(rows(out / "pairs.jsonl")) <= SMALL["TRAINED"]
    labeled = rows(out / "train.jsonl")
    assert 0 < sum(row["flipped"] for row in labeled) < len(labeled) / 2
    assert all((row["gold_chosen"] < row["gold_rejected"]) == row["flipped"] for row in labeled)

    points = rows(out / "curves" / "curves.jsonl")
    assert {point["n"] for point in points} == {1, 2, 3, 4}
    assert all(math.isfinite(point["gold"]) and math.isfinite(point["proxy"]) for point in points)
    assert len(rows(out / "held_out.jsonl")) == SMALL["MEASURED"]
    assert (out / "curves" / "curves.png").exists()


def test_the_chain_ends_with_the_part_that_fails(checkout):
    done = chain(checkout, GRMLIGHT="false")
    assert done.returncode != 0
    assert "curves:" not in done.stdout
    assert not (checkout / "out" / "prompts.jsonl").exists()
