"""The search for thresholds in one run of the real module."""

import json
import logging
import math

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger

from grmlight.policy.constraints import Constraints, ThresholdSearch
from grmlight.policy.constraints.thresholds import read_thresholds
from grmlight.training.checkpoints import Checkpoints

from . import runs
from .runs import SAMPLES, Hump, low, odd, run, weights

# Lightning asks modules of manual optimization to save what was before the step; ours save complete ones.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using ModelCheckpoint with manual optimization", "ignore:Checkpoint directory .* is not empty"
)

HUMP = f"{runs.__name__}.Hump"
OPTIONS = {"rewards": (odd, low), "lr": 1e-2, "update": {"epochs": 2}}


def search(**options):
    return ThresholdSearch(**{"evaluation": HUMP, "share": 0.125, "tolerance": 0.2, **options})


class Watching(ThresholdSearch):
    """Remembers the weights that were measured."""

    def _measure(self, trainer, experience, mixing):
        self.kept = getattr(self, "kept", [])
        self.kept.append(dict(self._candidate))
        super()._measure(trainer, experience, mixing)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    Hump.asked = 0
    watching = Watching(HUMP, tolerance=0.2)
    trained, seen = run(Constraints(variant="xi"), 32, [watching], logger=CSVLogger(folder, "run"), **OPTIONS)
    return watching, trained, seen, folder / "run" / "version_0", Hump.asked


def test_defect_the_start_box_is_taken_from_other_runs(whole):
    """Here it is the mean of the first answers, and one standard deviation of them up along each reward."""
    watching, _, seen, _, _ = whole
    first = {name: seen[0][f"rollout/reward_{name}"] for name in ("odd", "low")}
    assert watching.vertices[0].thresholds == pytest.approx(first, abs=1e-6)
    for vertex, moved in zip(watching.vertices[1:3], ("odd", "low"), strict=True):
        deviation = (first[moved] * (1 - first[moved]) * SAMPLES / (SAMPLES - 1)) ** 0.5
        assert vertex.thresholds == pytest.approx(first | {moved: first[moved] + deviation}, abs=1e-5)


def test_the_first_vertex_is_the_untrained_policy(whole):
    watching, _, _, _, _ = whole
    untrained = weights_of_untrained()
    for name, weight in watching.kept[0].items():
        torch.testing.assert_close(weight, untrained[name], rtol=0, atol=0)


def weights_of_untrained():
    trained, _ = run(Constraints(variant="xi"), 1, [search()], rewards=(odd, low), lr=1e-30, update={"epochs": 1})
    return weights(trained)


def test_defect_the_policy_is_never_returned_to_the_best_vertex(whole):
    watching, trained, _, _, _ = whole
    best = max(range(len(watching.vertices)), key=lambda place: watching.vertices[place].evaluation)
    assert len(watching.vertices) > 0
    for name, weight in weights(trained).items():
        torch.testing.assert_close(weight, watching.kept[best][name], rtol=0, atol=0)


def test_every_query_is_counted(whole):
    watching, _, _, _, asked = whole
    assert watching.queries == asked == SAMPLES * len(watching.vertices)
    assert [vertex.queries for vertex in watching.vertices] == [
        SAMPLES * (place + 1) for place in range(len(watching.vertices))
    ]


def test_defect_a_vertex_takes_a_tenth_of_the_run(whole):
    """It takes an eighth at most, 4 of 32 iterations, and one more in which it is measured."""
    watching, _, _, _, _ = whole
    assert all(vertex.iterations <= 4 for vertex in watching.vertices)
    for vertex in watching.vertices[1:]:
        assert vertex.reached or vertex.iterations == 4


def test_defect_the_evaluation_is_asked_for_held_out_prompts(whole):
    """The answers to training prompts that the run samples anyway are what it is asked for: no other are drawn."""
    watching, trained, seen, _, _ = whole
    assert trained.sampler.calls == len(seen) == trained.iterations


def test_what_was_found_is_written(whole):
    watching, _, _, folder, _ = whole
    rows = [json.loads(line) for line in (folder / "vertices.jsonl").read_text().splitlines()]
    assert [row["evaluation"] for row in rows] == [vertex.evaluation for vertex in watching.vertices]
    best = max(rows, key=lambda row: row["evaluation"])
    assert read_thresholds(folder / "thresholds.yaml") == pytest.approx(best["thresholds"])
    document = yaml.safe_load((folder / "thresholds.yaml").read_text())
    assert document["queries"] == watching.queries
    assert document["best"]["values"] == pytest.approx(best["values"])


def test_a_stopped_search_goes_on_as_if_it_had_not(whole, tmp_path):
    watching, trained, _, _, _ = whole
    for stop in (1, 7, 14):
        keep = Checkpoints(tmp_path / str(stop), save_last=True, every_n_train_steps=1)
        run(
            Constraints(variant="xi"),
            32,
            [search(), keep],
            stop_after=stop,
            enable_checkpointing=True,
            logger=CSVLogger(tmp_path, "stopped"),
            **OPTIONS,
        )
        again = search()
        resumed, _ = run(
            Constraints(variant="xi"),
            32,
            [again, Checkpoints(tmp_path / str(stop), save_last=True, every_n_train_steps=1)],
            enable_checkpointing=True,
            ckpt_path=str(tmp_path / str(stop) / "last.ckpt"),
            **OPTIONS,
        )
        assert again.vertices == watching.vertices
        assert again.queries == watching.queries
        for name, weight in weights(resumed).items():
            torch.testing.assert_close(weight, weights(trained)[name], rtol=0, atol=0)


def test_a_search_that_converged_ends_the_run(tmp_path):
    """With sides this near all of the simplex is known from its first vertex; nothing is left to do, resumed or not."""
    options = {"enable_checkpointing": True, "rewards": (odd, low), "lr": 1e-2}
    Hump.asked = 0
    whole, found = Constraints(variant="xi"), search(tolerance=5)
    trained, _ = run(whole, 6, [found, keeping(tmp_path)], logger=CSVLogger(tmp_path, "run"), **options)
    assert found._converged
    assert trained.iterations == 1
    assert yaml.safe_load((tmp_path / "run" / "version_0" / "thresholds.yaml").read_text())["converged"]
    again = Constraints(variant="xi")
    newest = str(tmp_path / "last.ckpt")
    resumed, _ = run(again, 6, [search(tolerance=5), keeping(tmp_path)], ckpt_path=newest, **options)
    assert resumed.iterations == 1
    assert again.thresholds == whole.thresholds == found.vertices[0].thresholds
    assert again.state_dict() == whole.state_dict()
    assert Hump.asked == SAMPLES
    for name, weight in weights(resumed).items():
        torch.testing.assert_close(weight, weights(trained)[name], rtol=0, atol=0)


def test_a_search_whose_best_vertex_missed_its_thresholds_says_so(caplog):
    """A policy that does not move stays where it began, and the first vertex is the only one that is reached."""
    options = {"rewards": (odd, low), "lr": 1e-30}
    with caplog.at_level(logging.WARNING, "grmlight"):
        run(Constraints(variant="xi"), 16, [found := search(evaluation=f"{__name__}.Later", tolerance=0.01)], **options)
    best = max(found.vertices, key=lambda vertex: vertex.evaluation)
    [text] = [record.getMessage() for record in caplog.records if "best vertex" in record.getMessage()]
    assert f"odd {best.values['odd']:.4g} for {best.thresholds['odd']:.4g}" in text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "grmlight"):
        run(Constraints(variant="xi"), 1, [search()], **options)
    assert "best vertex" not in caplog.text


class Later:
    """An evaluation that is better whenever it is asked."""

    name = "later"

    def __init__(self):
        self.calls = 0

    def score(self, groups):
        self.calls += 1
        return [[float(self.calls)] * len(group.responses) for group in groups]


class Lost(Hump):
    """An evaluation that has no number once it has been asked twice."""

    def __init__(self):
        self.calls = 0

    def score(self, groups):
        self.calls += 1
        found = super().score(groups)
        return found if self.calls != 3 else [[math.nan] * len(group.responses) for group in groups]


def test_an_evaluation_that_is_lost_leaves_a_checkpoint(tmp_path):
    options = {"enable_checkpointing": True, **OPTIONS}
    keep = Checkpoints(tmp_path, save_last=True, every_n_train_steps=1000)
    with pytest.raises(ValueError, match="Lost gave no finite number for 32 answers"):
        run(Constraints(variant="xi"), 32, [search(evaluation=f"{__name__}.Lost"), keep], **options)
    again = search()
    keep = Checkpoints(tmp_path, save_last=True, every_n_train_steps=1000)
    run(Constraints(variant="xi"), 32, [again, keep], ckpt_path=str(tmp_path / "last.ckpt"), **options)
    assert len(again.vertices) > 2
    assert again.queries == SAMPLES * (len(again.vertices) + 1)


def keeping(folder):
    return Checkpoints(folder, save_last=True, every_n_train_steps=1)


def test_defect_distances_are_absolute():
    """In sides of the start box, so a reward in other units finds the same points near."""
    for unit, offset in ((1.0, 0.0), (1000.0, -70.0)):
        found = search(tolerance=0.05)
        found._names, found._sides = ["odd"], {"odd": 0.4 * unit}
        value = 0.5 * unit + offset
        assert found._near({"odd": value}, {"odd": value + 0.019 * unit})
        assert not found._near({"odd": value}, {"odd": value + 0.021 * unit})


def test_mistakes_are_named():
    for mixing, options, reason in (
        (Constraints({"odd": 0.5}, "xi"), {}, "drop those of mixing"),
        (Constraints(variant="mu"), {}, "Constraints with variant: xi"),
        (None, {}, "Constraints with variant: xi"),
        (Constraints(variant="xi"), {"evaluation": "nowhere.at_all"}, "nowhere.at_all"),
    ):
        with pytest.raises(ValueError, match=reason):
            run(mixing, 1, [search(**options)])
    with pytest.raises(ValueError, match="there are no thresholds"):
        run(Constraints(variant="xi"), 1)
    with pytest.raises(ValueError, match="share at most 1"):
        search(share=2)


def constant(prompt, response):
    return 1.0


@pytest.mark.filterwarnings("ignore:.*worth the same|.*constant")
def test_a_reward_that_never_differs_has_no_side():
    with pytest.raises(ValueError, match="worth the same in reward 'constant'"):
        run(Constraints(variant="xi"), 2, [search()], rewards=(odd, constant))
