"""The arms that experts are compared with: the same pairs, as many labels."""

import json

import pytest

from grmlight.lab import expert_arms, world_files
from grmlight.lab.expert_arms import ARMS, CAPABILITIES, WANTS, accuracy, gold, write_pairs
from grmlight.lab.gold import parts
from grmlight.lab.world import Prompt
from grmlight.models import training_memory


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    write_pairs(world_files(0), folder, subset=1, pairs=240)
    return folder


def test_arms_differ_in_labels_alone(folder):
    arms = {arm: read(folder / f"{arm}.jsonl") for arm in ARMS}
    ids = [row["id"] for row in arms["one"]]
    assert len(ids) == 240
    assert all([row["id"] for row in rows] == ids for rows in arms.values())
    labeled = {arm: sum("capability" in row for row in rows) for arm, rows in arms.items()}
    assert labeled["one"] == 0
    assert labeled["outer"] == len(WANTS) * len(CAPABILITIES)
    assert labeled["unsupervised"] == labeled["full"] > 50
    assert arms["ensemble"] == arms["one"]
    for one, same, full in zip(arms["one"], arms["unsupervised"], arms["full"], strict=True):
        assert one["chosen"] == same["chosen"], "labels of the architecture alone are the overall ones"
        assert full.get("capability") == same.get("capability")


def test_noise_is_as_said_and_tests_are_exact(folder):
    files = world_files(0)

    def gap(row, name=None):
        found = [parts(files.gold.world, Prompt.parse(row["prompt"]), row[side]) for side in ("chosen", "rejected")]
        better, worse = (getattr(each, name) if name else gold(row["category"], each) for each in found)
        return better - worse

    assert all(gap(row) > 0 for row in read(folder / "test.jsonl"))
    overall = [gap(row) < 0 for row in read(folder / "one.jsonl")]
    assert sum(overall) / len(overall) == pytest.approx(0.3, abs=0.07)
    judged = [gap(row, row["capability"]) < 0 for row in read(folder / "full.jsonl") if "capability" in row]
    assert sum(judged) / len(judged) == pytest.approx(0.1, abs=0.07)


def test_arms_have_about_as_many_weights_to_train_and_the_ensemble_a_member_an_expert():
    module = expert_arms._module("ensemble", world_files(0), steps=3, seed=0)
    assert (module.ensemble.size, module.ensemble.aggregation) == (len(CAPABILITIES), "mean")
    sizes = {}
    for arm in ARMS:
        each = expert_arms._module(arm, world_files(0), steps=3, seed=0)
        # Routing alone trains its tasks' adapters; the experts it also has stay as they are made.
        learning = len(WANTS) if arm == "outer" else each.adapters
        sizes[arm] = training_memory(each.backbone, each.ensemble, learning).trainable
    assert sizes["ensemble"] == sizes["one"] == sizes["outer"] == sizes["full"]


@pytest.mark.parametrize("arm", ["ensemble", "outer", "full"])
def test_an_arm_trains(arm, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path))
    assert 0.3 < accuracy(arm, world_files(0), folder, steps=3, seed=0) < 1
