"""The baselines of the GRM paper, run as shipped on the embedded world: GRM's model and head, and one change each."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from grmlight._data_rs import Store
from grmlight.cli import main

CONFIGS = Path(__file__).parent.parent / "configs"
BASELINES = ["frozen", "vanilla", "margin", "label_smoothing", "label_noise"]
QUICK = [
    "--data.init_args.pairs=48", "--trainer.max_epochs=1", "--trainer.limit_val_batches=1",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of configs/grm.yaml with a baseline and further arguments."""
    made = {}

    def start(baseline=None, *arguments):
        key = (baseline, *arguments)
        if key not in made:
            folder = made[key] = tmp_path_factory.mktemp(baseline or "grm")
            files = ["--config", str(CONFIGS / "grm.yaml")]
            files += ["--config", str(CONFIGS / f"baselines/{baseline}.yaml")] if baseline else []
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setenv("GRMLIGHT_CACHE", str(folder / "cache"))
                patch.setattr("sys.argv", ["grmlight", "fit", *files, *QUICK, *arguments])
                main()
        return made[key]

    return start


def weights(folder):
    return load_file(folder / "runs/grm/version_0/model/model.safetensors")


def config(folder):
    return yaml.safe_load((folder / "runs/grm/version_0/config.yaml").read_text())


def flipped(folder):
    """Rows whose sides the training store says are swapped."""
    report = json.loads((folder / "runs/grm/version_0/data.json").read_text())["train"]
    for path in (folder / "cache/stores").iterdir():
        rows = Store(str(path)).rows()
        if len(rows) == report["used"] == 48:
            found = [row["row"] for row in rows if row["flipped"]]
            assert len(found) == report["flipped"]
            return found
    raise AssertionError("no store of the training pairs")


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_runs_and_has_the_head_of_grm(run, baseline):
    grm, found = run(), run(baseline)
    assert config(found)["model"]["init_args"]["head"] == config(grm)["model"]["init_args"]["head"]
    shapes = [{name: tensor.shape for name, tensor in weights(folder).items()} for folder in (grm, found)]
    assert shapes[0] == shapes[1]
    assert any(name.startswith("v_head.") for name in shapes[0])
    results = json.loads((found / "runs/grm/version_0/results.json").read_text())
    assert {"id", "ood_all"} <= results.keys()


def test_each_baseline_is_another_model_and_only_the_frozen_backbone_stays(run):
    found = {baseline: weights(run(baseline)) for baseline in [None, *BASELINES]}
    head, body = "v_head.summary.0.weight", "model.layers.0.mlp.up_proj.weight"
    start = load_file(CONFIGS.parent / "grmlight/lab/assets/lm/model.safetensors")
    assert body in start
    for baseline, tensors in found.items():
        assert torch.equal(tensors[body], start[body]) == (baseline == "frozen")
    heads = [tensors[head] for tensors in found.values()]
    assert not any(torch.equal(heads[i], heads[j]) for i in range(len(heads)) for j in range(i))


def test_the_noise_belongs_to_the_data_whatever_model_is_trained_on_it(run):
    """Two members of an ensemble: another model seed, another order, another cache, the same swapped rows."""
    first = flipped(run("label_noise"))
    second = flipped(run("label_noise", "--model.init_args.seed=1", "--data.init_args.seed=5", "--seed_everything=9"))
    assert first == second
    assert 4 <= len(first) <= 20
    assert flipped(run("label_noise", "--data.init_args.flip_seed=1")) != first
    assert flipped(run()) == []
