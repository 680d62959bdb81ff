"""What training logs, against the definitions on every pair alone, in one process and in two."""

import json
import os
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from grmlight.data import PrepareOptions, prepare
from grmlight.data.loader import GroupLoader, TrainingLoader
from grmlight.evaluation.pair_figures import FIGURES
from grmlight.models import HeadConfig, RewardModel
from tests import poisoned_run
from tests.evaluation.test_pair_figures import reference
from tests.poisoned_run import PAIRS_PER_STEP, STEPS
from tests.tiny_models import tiny_backbone


@pytest.fixture(scope="module")
def logged(tmp_path_factory, byte_tokenizer):
    """One line over two epochs in which nothing moves (learning rate 0), the last steps with half the pairs.

    By (processes, packs): the line, and the folder. Two processes have a pack without a pair in the last steps.
    """
    folder = tmp_path_factory.mktemp("figures")
    poisoned_run.write_pairs(folder / "pairs.jsonl")
    given = ["--data", str(folder / "pairs.jsonl"), "--tokenizer", str(byte_tokenizer), "--lr", "0"]
    given += ["--log_every", str(STEPS)]
    found = {}
    for processes, packs in ((1, 2), (2, 2)):
        out = folder / f"{processes}"
        arguments = [*given, "--devices", str(processes), "--accumulate", str(packs), "--out", str(out)]
        environment = os.environ | {"GRMLIGHT_CACHE": str(folder), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, "-m", "tests.poisoned_run", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        (line,) = map(json.loads, (out / "lines.jsonl").read_text().splitlines())
        found[processes, packs] = line
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRMLIGHT_CACHE", str(folder))
        store = prepare(str(folder / "pairs.jsonl"), str(byte_tokenizer), PrepareOptions()).store
    model = RewardModel(tiny_backbone("llama", config={"vocab_size": 320}), HeadConfig(width=16, dropout=0.0))
    model.load_state_dict(load_file(folder / "1" / "weights.safetensors"))
    return found, store, model.eval()


@pytest.fixture(scope="module")
def expected(logged):
    """The figures of all pairs, each scored alone."""
    _, store, model = logged
    with torch.no_grad():
        scored = [
            (model(batch).rewards_N.tolist(), batch.scored_tokens_N().tolist()) for batch in GroupLoader(store, 1)
        ]
    return reference([(*rewards, 1.0, *tokens) for rewards, tokens in scored])


@pytest.mark.parametrize("case", [(1, 2), (2, 2)])
def test_figures_are_those_of_all_pairs(case, logged, expected):
    line = logged[0][case]
    for name in FIGURES:
        assert line[f"train/{name}"] == pytest.approx(expected[name], rel=2e-5, abs=1e-6), name


def test_losses_and_gradients_do_not_depend_on_the_number_of_processes(logged):
    one, two = logged[0].values()
    for name in ("loss", "preference", "poison", "gradient_norm"):
        assert two[f"train/{name}"] == pytest.approx(one[f"train/{name}"], rel=1e-5)


@pytest.mark.parametrize("case", [(1, 2), (2, 2)])
def test_sharing_and_imbalance_are_counted(case, logged):
    (found, store, _), (ranks, packs) = logged, case
    real = kept = 0
    for batch in GroupLoader(store, 1):
        (start, prompt, first, second) = batch.layout.bounds
        real += (prompt - start) * 2 + second - prompt
        kept += second
    assert found[case]["train/sharing"] == real / kept
    loaders = [TrainingLoader(store, PAIRS_PER_STEP, rank, ranks, packs, seed=0) for rank in range(ranks)]
    tokens = [len(batch.input_ids_T) for loader in loaders for _ in range(2) for batch in loader]
    assert found[case]["train/imbalance"] == pytest.approx(max(tokens) / (sum(tokens) / len(tokens)))


def test_speed_is_work_over_time_and_memory_is_plausible(logged):
    found, store, _ = logged
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    for line in found.values():
        ratio = line["speed/tokens_per_second"] / line["speed/pairs_per_second"]
        real = sum(len(b.input_ids_T) + b.layout.bounds[1] for b in GroupLoader(store, 1))
        assert ratio == pytest.approx(real / len(store))
        assert 0.1 < line["speed/memory_gb"] <= max(peaks) * 1024 / 1e9
        assert "speed/mfu" not in line
