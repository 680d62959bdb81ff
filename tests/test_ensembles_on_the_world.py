"""The shipped ensemble configurations, each trained on the embedded world, scored and exported."""

import csv
import json

import pytest

from grmlight.export import export
from grmlight.models import EnsembleModel, load_reward_model
from grmlight.scoring import score
from tests.test_cli import QUICK, REPOSITORY, grmlight

CONFIGS = {"ensemble": (3, "mean"), "ensemble_min": (3, "wco"), "ensemble_uwo": (5, "uwo")}


@pytest.mark.parametrize(
    "name", [name if name == "ensemble_uwo" else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_an_ensemble_trains_on_the_world_and_its_folder_scores(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    size, aggregation = CONFIGS[name]
    baseline = ["--config", REPOSITORY / f"configs/baselines/{name}.yaml"]
    grmlight("fit", *QUICK, *baseline, cwd=tmp_path)
    run = tmp_path / "runs/grm/version_0"
    results = json.loads((run / "results.json").read_text())
    with (run / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    for figure in ("disagreement", "margin_disagreement"):
        assert results["id"][figure] > 0
        assert float(logged[0][f"train/{figure}"]) > 0
    model = load_reward_model(run / "model")
    assert isinstance(model, EnsembleModel)
    assert (model.config.size, model.config.aggregation) == (size, aggregation)
    export(run / "checkpoints", tmp_path / "exported")
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"is {word} good?", "chosen": "yes it is", "rejected": "no"} for word in ("this", "that")]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = []
    for folder in (run, tmp_path / "exported"):
        score(folder, str(pairs), tmp_path / "scores.jsonl")
        written.append([json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()])
    assert len(written[0]) == 2
    for one, other in zip(*written, strict=True):
        assert one["disagreement"] > 0
        assert one["margin"] == pytest.approx(other["margin"], abs=1e-5)
