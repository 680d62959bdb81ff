"""Proxy points of runs whose evaluation is a known hump."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from grmlight.cli import main
from grmlight.evaluation.curves import CurvePoint, write_curves
from grmlight.policy.constraints.proxy_points import FitOptions, independent_points, joint_point, proxy_points
from grmlight.policy.constraints.thresholds import read_thresholds
from grmlight.policy.constraints.trajectory import read_trajectories

NAMES = ["count", "concise"]


def hump(count, concise):
    """Peaks at (0.6, -0.4), and falls along both rewards after that."""
    return 1 - (count - 0.6) ** 2 - (concise + 0.4) ** 2 - 0.8 * (count - 0.6) * (concise + 0.4)


def write_run(path, favored, steps=40, noise=0.0, seed=0):
    """A run that optimizes one reward; the other follows at some distance."""
    rng, rows = np.random.default_rng(seed), []
    for step in range(steps):
        t = step / (steps - 1)
        values = {name: (t if name == favored else 0.45 * t) + noise * rng.normal() for name in NAMES}
        values["concise"] -= 1
        rows.append({"step": 10 * step, **values, "gold": hump(**values)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{favored}={path}"


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / f"{name}.jsonl", name, noise=0.02, seed=place) for place, name in enumerate(NAMES)]


def test_curves_without_steps_are_named_by_file_and_line(tmp_path):
    point = {"step": 3, "count": 1.0, "concise": 1.0, "gold": 1.0}
    for step in (None, True, "4", math.nan):
        (tmp_path / "curves.jsonl").write_text(json.dumps(point) + "\n" + json.dumps(point | {"step": step}) + "\n")
        with pytest.raises(ValueError, match=r"curves\.jsonl: line 2 has no step; give the curve of a training run"):
            read_trajectories([str(tmp_path / "curves.jsonl")], NAMES, "gold")


def test_independent_points_are_where_the_evaluation_peaks(runs):
    found = independent_points(read_trajectories(runs, NAMES, "gold"), NAMES)
    for name, [peak] in found.items():
        rows = [json.loads(line) for line in Path(peak.run).read_text().splitlines()]
        best = max(rows, key=lambda row: row["gold"])
        assert (peak.step, peak.value, peak.evaluation) == (best["step"], best[name], best["gold"])
        assert peak.at_end == (best is rows[-1])


def test_the_joint_point_is_the_hump(tmp_path):
    """Where the runs pass near the hump, the fitted surface peaks at it."""
    rng = np.random.default_rng(1)
    path = tmp_path / "cloud.jsonl"
    rows = [{"count": rng.uniform(0, 1), "concise": rng.uniform(-1, 0)} for _ in range(150)]
    rows = [{"step": place, **row, "gold": hump(**row) + 0.01 * rng.normal()} for place, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = joint_point(read_trajectories([str(path)], NAMES, "gold"), NAMES, FitOptions())
    assert found.values["count"] == pytest.approx(0.6, abs=0.05)
    assert found.values["concise"] == pytest.approx(-0.4, abs=0.05)
    assert found.expected == pytest.approx(1, abs=0.03)


def test_the_joint_point_lies_where_there_is_data(tmp_path):
    """An evaluation that rises towards a corner where no run was: the point stays with the runs."""
    runs = [write_run(tmp_path / f"{name}.jsonl", name, noise=0.02, seed=place) for place, name in enumerate(NAMES)]
    trajectories = read_trajectories(runs, NAMES, "gold")
    found = joint_point(trajectories, NAMES, FitOptions())
    points = np.concatenate([run.points(NAMES) for run in trajectories])
    distance = np.abs(points - list(found.values.values())).max(axis=1).min()
    assert distance < 0.15


def test_the_file_says_where_each_number_came_from(tmp_path, runs):
    out = tmp_path / "made" / "thresholds.yaml"
    told = proxy_points(runs, NAMES, "gold", out)
    document = yaml.safe_load(out.read_text())
    assert read_thresholds(out) == document["thresholds"]
    assert list(document["thresholds"]) == NAMES
    assert document["method"] == "joint"
    assert document["joint"]["points"] == 80
    assert document["joint"]["runs"] == [each.partition("=")[2] for each in runs]
    assert {peak["run"] for name in NAMES for peak in document["independent"][name]["peaks"]} == set(
        document["joint"]["runs"]
    )
    picture = out.with_suffix(".png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(out) in told
    assert str(picture) in told
    proxy_points(runs, NAMES, "gold", out, "independent")
    document = yaml.safe_load(out.read_text())
    for name in NAMES:
        assert document["thresholds"][name] == document["independent"][name]["threshold"]
    assert "joint" not in document


def test_thresholds_do_not_depend_on_the_order_of_rewards_and_runs(tmp_path, runs):
    """The official code applied thresholds to the wrong rewards, by their place; here only the name counts."""
    for method in ("joint", "independent"):
        proxy_points(runs, NAMES, "gold", tmp_path / "a.yaml", method)
        proxy_points(runs[::-1], NAMES[::-1], "gold", tmp_path / "b.yaml", method)
        assert read_thresholds(tmp_path / "a.yaml") == pytest.approx(read_thresholds(tmp_path / "b.yaml"), abs=1e-9)


def test_several_runs_of_a_reward_are_averaged(tmp_path):
    runs = [
        write_run(tmp_path / f"{name}{seed}.jsonl", name, noise=0.03, seed=seed) for name in NAMES for seed in (1, 2, 3)
    ]
    proxy_points(runs, NAMES, "gold", tmp_path / "t.yaml", "independent")
    document = yaml.safe_load((tmp_path / "t.yaml").read_text())
    for name in NAMES:
        peaks = [peak["value"] for peak in document["independent"][name]["peaks"]]
        assert len(peaks) == 3
        assert document["thresholds"][name] == pytest.approx(math.fsum(peaks) / 3)


def test_the_points_of_curves_are_read(tmp_path):
    """Their proxy is the reward that the run optimized; the other rewards are not needed for independent points."""
    runs = []
    for place, name in enumerate(NAMES):
        path = tmp_path / f"{name}.jsonl"
        points = [
            CurvePoint("study", "ppo", 1, step, None, 0.0, step / 9, "k1", step / 10, -((step - 3 - place) ** 2), 0.1)
            for step in range(9)
        ]
        write_curves(path, points)
        runs.append(f"{name}={path}")
    proxy_points(runs, NAMES, "gold", tmp_path / "t.yaml", "independent")
    assert read_thresholds(tmp_path / "t.yaml") == pytest.approx({"count": 0.3, "concise": 0.4})


def test_a_run_that_still_rises_is_told_of(tmp_path):
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps({"step": k, "count": k / 10, "gold": k}) + "\n" for k in range(5)))
    told = proxy_points([f"count={path}"], ["count"], "gold", tmp_path / "t.yaml", "independent")
    assert f"{path}: gold is highest at the last step; count may be worth more still" in told


def test_three_rewards_have_a_joint_point_and_a_picture(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "cloud.jsonl"
    rows = rng.uniform(0, 1, (200, 3))
    gold = 1 - ((rows - [0.3, 0.5, 0.7]) ** 2).sum(axis=1)
    lines = [
        {"step": k, "a": r[0], "b": r[1], "c": r[2], "gold": g} for k, (r, g) in enumerate(zip(rows, gold, strict=True))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    proxy_points([str(path)], ["a", "b", "c"], "gold", tmp_path / "t.yaml")
    assert list(read_thresholds(tmp_path / "t.yaml").values()) == pytest.approx([0.3, 0.5, 0.7], abs=0.05)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "0 steps tell all of count, concise, gold"),
        ("{}\n", "line 1 has no step"),
        ("nonsense\n", "line 1 is no JSON"),
        ('{"step": 1, "count": 1, "gold": 2}\n' * 3, "it has count, gold"),
        ('{"step": 1, "count": NaN, "concise": 0, "gold": 2}\n' * 3, "count is not finite at step 1"),
        ('{"step": 1, "count": 1, "concise": 0, "gold": 2}\n' * 30, "every step of every run"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, reason):
    path = tmp_path / "run.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason):
        proxy_points([str(path)], NAMES, "gold", tmp_path / "t.yaml")
    assert not (tmp_path / "t.yaml").exists()


def test_mistakes_of_the_command_are_named(tmp_path, runs):
    with pytest.raises(ValueError, match="no run optimized count alone; name it as REWARD=RUN"):
        proxy_points(runs[1:], NAMES, "gold", tmp_path / "t.yaml", "independent")
    with pytest.raises(ValueError, match="'other' is none of the rewards"):
        proxy_points(["other=somewhere"], NAMES, "gold", tmp_path / "t.yaml")
    with pytest.raises(ValueError, match="has no metrics.csv"):
        proxy_points([str(tmp_path)], NAMES, "gold", tmp_path / "t.yaml")
    with pytest.raises(ValueError, match="cannot be read"):
        proxy_points([str(tmp_path / "none.jsonl")], NAMES, "gold", tmp_path / "t.yaml")
    with pytest.raises(ValueError, match="different names"):
        proxy_points(runs, ["count", "count"], "gold", tmp_path / "t.yaml")


def test_the_command(tmp_path, runs, capsys):
    out = tmp_path / "thresholds.yaml"
    main(["proxy-points", *runs, "--rewards", "count,concise", "--out", str(out), "--highest_degree", "3"])
    assert f"thresholds: {out}" in capsys.readouterr().out
    assert yaml.safe_load(out.read_text())["joint"]["degree"] <= 3
    with pytest.raises(SystemExit, match="no run optimized count alone"):
        main(["proxy-points", *runs[1:], "--rewards", "count,concise", "--out", str(out), "--method", "independent"])
