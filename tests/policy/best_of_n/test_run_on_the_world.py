"""Best-of-n on the embedded world from the command line: pool, curves, data sets, and a second run on the same pool."""

import contextlib
import dataclasses
import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from grmlight.cli import main
from grmlight.data.options import PrepareOptions
from grmlight.data.prepare import prepare
from grmlight.evaluation.curves import read_curves, summarize
from grmlight.lab import world_files
from grmlight.policy.best_of_n import run
from tests.policy.best_of_n.test_estimator import over_subsets
from tests.policy.best_of_n.test_run import HERE, LM, length

GOLD = "grmlight.lab.GoldReward"
REWARDS = ["--reward", f"long={HERE}.length", f"colors={HERE}.colors", f"oracle={GOLD}", "--gold", GOLD]


def bon(folder, *arguments):
    main([
        "bon", "--policy", LM, "--prompts", str(folder / "prompts.jsonl"), "--samples", "64", "--max_new_tokens", "40",
        "--out", str(folder / "out"), *map(str, arguments),
    ])  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Ran:
    """A run of best-of-n: its folder, its prompts and what it printed."""

    folder: Path
    prompts: list[str]
    printed: str


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """8 prompts x 64 answers of the shipped LM, by three rewards, with the gold, and both data sets."""
    folder = tmp_path_factory.mktemp("world")
    with gzip.open(world_files().tests["id"], "rt") as file:
        prompts = list(dict.fromkeys(json.loads(line)["prompt"] for line in file))[:8]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        bon(folder, *REWARDS, "--pairs", folder / "pairs.jsonl", "--best", folder / "best.jsonl", "--n", 16)
    return Ran(folder, prompts, printed.getvalue())


def test_the_embedded_world_from_samples_to_curves(world):
    folder = world.folder
    assert "512 answers to 8 prompts" in world.printed
    assert "sampler huggingface: 512 answers in" in world.printed
    points = read_curves(folder / "out" / "curves.jsonl")
    assert list(dict.fromkeys(point.method for point in points)) == ["long", "colors", "oracle", "mean", "wco", "uwo"]
    found = {each.method: each for each in summarize(points)}
    assert found["oracle"].drop == 0
    assert found["oracle"].final > 0.5 > found["long"].final
    assert all(point.gold == pytest.approx(point.proxy, abs=1e-12) for point in points if point.method == "oracle")
    for name in ("curves.md", "curves.png", "report.json"):
        assert (folder / "out" / name).stat().st_size > 100
    # The curve from the pool's own file, by hand.
    gold = world_files().gold
    lines = [json.loads(line) for line in (folder / "out" / "pool.jsonl").read_text().splitlines()[2:]]
    answers = {place: row for line in lines for place, row in zip(line["prompts"], line["answers"], strict=True)}
    gains = []
    for place, prompt in enumerate(world.prompts):
        values = [gold.score(prompt, text, ended) for text, _, ended in answers[place]]
        lengths = [length(prompt, text) for text, _, _ in answers[place]]
        gains.append(over_subsets(lengths, values, 2) - np.mean(values))
    (two,) = [point for point in points if (point.method, point.n) == ("long", 2)]
    assert two.gold == pytest.approx(np.mean(gains), abs=1e-12)


def test_a_second_time_nothing_is_sampled_or_scored(world, tmp_path, monkeypatch):
    """And other proxies come from the same matrix."""
    folder = shutil.copytree(world.folder, tmp_path / "again")
    monkeypatch.setattr(run, "open_sampler", None)
    monkeypatch.setattr(run, "open_reward", None)
    bon(folder, *REWARDS[:2], "--gold", GOLD, "--max_n", 16)
    before, again = (read_curves(each / "out" / "curves.jsonl") for each in (world.folder, folder))
    (two,) = [point for point in before if (point.method, point.n) == ("long", 2)]
    assert [point for point in again if point.n == 2] == [two]
    assert max(point.n for point in again) == 16


def test_its_data_sets_are_read_as_pairs(world, monkeypatch, tmp_path):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path))
    for name in ("pairs", "best"):
        rows = [json.loads(line) for line in (world.folder / f"{name}.jsonl").read_text().splitlines()]
        assert len(rows) >= 6
        assert all(row["margin"] > 0 and row["labeled_by"] == "mean" for row in rows)
        prepared = prepare(str(world.folder / f"{name}.jsonl"), str(world_files().tokenizer), PrepareOptions())
        assert prepared.report["used"] == len(rows)
