"""A small model from random weights, trained with `configs/scratch.yaml` on real pairs, beside the rulers."""

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SEEDS = (0, 1, 2)
LIMIT = 240
"""Seconds a run may take."""

pytestmark = pytest.mark.shared_data


def truthfulqa(shared_data, folder):
    """The files as they are given."""
    return shared_data / "truthfulqa_train.jsonl.gz", shared_data / "truthfulqa_test.jsonl.gz"


def politeness(shared_data, folder):
    """A fixed fifth of the pairs, by the hash of their id, is for testing."""
    parts = {"train": [], "test": []}
    for line in (shared_data / "politeness.jsonl").read_text(encoding="utf-8").splitlines():
        bucket = int(hashlib.sha256(json.loads(line)["id"].encode()).hexdigest(), 16) % 5
        parts["test" if bucket == 0 else "train"].append(line + "\n")
    for name, lines in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    assert 0.15 < len(parts["test"]) / 1094 < 0.25
    return folder / "train.jsonl", folder / "test.jsonl"


def core_seconds():
    """Processor time of all finished processes that were started here."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def train(files, folder, seed):
    """One run, its time checked; its results on the test file."""
    command = [sys.executable, "-m", "grmlight", "fit"]
    command += ["--config", REPOSITORY / "configs/grm.yaml", "--config", REPOSITORY / "configs/scratch.yaml"]
    command += [f"--data.init_args.train={files[0]}", f"--data.init_args.val={files[1]}"]
    command += [f"--{name}={seed}" for name in ("seed_everything", "model.init_args.seed", "data.init_args.seed")]
    command += ["--trainer.enable_progress_bar=false"]
    environment = os.environ | {"GRMLIGHT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    place = folder / f"seed-{seed}"
    place.mkdir()
    wall, cores = time.monotonic(), core_seconds()
    done = subprocess.run(
        list(map(str, command)), cwd=place, env=environment, capture_output=True, text=True, timeout=3 * LIMIT
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    wall, cores = time.monotonic() - wall, core_seconds() - cores
    assert wall < LIMIT, (wall, cores)
    results = json.loads((place / "runs/scratch/version_0/results.json").read_text())["val"]
    for ruler, label in (("longer_wins", "longer wins (tokens)"), ("bag_of_words", "bag of words")):
        assert 0 <= results[ruler] <= 1
        assert f"{label} {results[ruler]:.3f}" in done.stdout
    print(f"{files[1].name} seed {seed}: {wall:.0f} s, {cores:.0f} s of a core, {results}")
    return results


def test_politeness_is_learned(shared_data, tmp_path):
    assert train(politeness(shared_data, tmp_path), tmp_path, seed=0)["accuracy"] > 0.85


@pytest.mark.slow
@pytest.mark.timeout(len(SEEDS) * 3 * LIMIT)
@pytest.mark.parametrize(("files", "least"), [(truthfulqa, 0.70), (politeness, 0.85)], ids=["truthfulqa", "politeness"])
def test_held_out_accuracy_in_the_mean_of_three_seeds(files, least, shared_data, tmp_path):
    found = files(shared_data, tmp_path)
    accuracies = [train(found, tmp_path, seed)["accuracy"] for seed in SEEDS]
    assert sum(accuracies) / len(SEEDS) > least, accuracies
