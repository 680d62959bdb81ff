"""The study of all policy methods: a tiny one that is resumed, its table against plain arithmetic, and the whole."""

import dataclasses
import json
import math
import random
import statistics
from pathlib import Path

import pytest

from grmlight.evaluation.curves import CurvePoint, read_curves
from grmlight.lab import policy_curves, world_files
from grmlight.lab.policy_curves import study
from grmlight.lab.policy_runs import METHODS, PromptPoint
from grmlight.lab.policy_start import NOISE, Sizes
from grmlight.lab.policy_table import as_markdown, row_of
from grmlight.policy.read_prompts import read_prompts

CONFIGS = Path(__file__).parent.parent.parent / "configs"
TINY = Sizes(
    sft_pairs=32,
    prompts=32,
    pairs=16,
    held_out=4,
    samples=1,
    measurements=1,
    answers=8,
    max_n=4,
    max_steps=2,
)
STUDENT_T_3 = 4.302652729911275


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """One seed of two methods."""
    folder = tmp_path_factory.mktemp("curves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRMLIGHT_CACHE", str(folder / "cache"))
        yield folder / "out", study(folder / "out", CONFIGS, ["rpo", "best-of-n"], 1, TINY)


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_table_is_that_of_the_points(tiny):
    out, _ = tiny
    header, _, *table = (out / "table.md").read_text().splitlines()
    assert [cells(line)[0] for line in table] == ["rpo", "best-of-n"]
    points = rows(out / "curves.jsonl")
    for line in table:
        own = [point for point in points if point["method"] == cells(line)[0]]
        start, end = own[0], own[-1]
        assert (start["step"], start["n"]) in ((0, None), (None, 1))
        assert (end["step"], end["n"]) in ((2, None), (None, 4))
        wanted = [1, end["kl"], start["proxy"], end["proxy"], start["gold"], end["gold"], end["gold"] - start["gold"]]
        assert [float(cell) for cell in cells(line)[1:8]] == pytest.approx(wanted, abs=0.00501)
    assert len(cells(header)) == len(cells(table[0]))


def test_points_are_the_means_of_their_prompts(tiny):
    out, _ = tiny
    for method in ("rpo", "best-of-n"):
        folder = out / "runs" / f"{method}-0"
        parts = rows(folder / "prompts.jsonl")
        for point in read_curves(folder / "curve.jsonl"):
            own = [each for each in parts if each["place"] == (point.step if point.n is None else point.n)]
            assert len(own) == TINY.held_out
            for name in ("proxy", "gold"):
                mean = sum(each[name] for each in own) / len(own)
                assert mean == pytest.approx(getattr(point, name), abs=1e-9)


def test_nobody_trains_on_what_is_measured(tiny):
    out, _ = tiny
    start = out / "starts" / "0"
    held_out = set(read_prompts(str(start / "held_out.jsonl")))
    assert len(held_out) == TINY.held_out
    for name in ("prompts", "sft", "pairs", "unlabeled"):
        assert held_out.isdisjoint(read_prompts(str(start / f"{name}.jsonl"))), name


def test_labels_are_the_golds_but_for_the_flips(tiny):
    out, _ = tiny
    gold = world_files(0).gold
    pairs = rows(out / "starts" / "0" / "pairs.jsonl")
    for row in pairs:
        better, worse = (gold.score(row["prompt"], row[side]) for side in ("chosen", "rejected"))
        assert (better < worse) == row["flipped"]
    assert json.loads((out / "starts" / "0" / "pairs.jsonl.report.json").read_text())["noise"] == NOISE


def test_what_is_done_is_not_run_again(tiny, monkeypatch, tmp_path):
    out, found = tiny

    def refuse(*arguments):
        pytest.fail(f"ran {arguments[0]} again")

    before = {path: path.read_bytes() for path in (out / "runs").rglob("*.jsonl")}
    with monkeypatch.context() as patch:
        patch.setattr(policy_curves, "run", refuse)
        assert repr(study(out, CONFIGS, ["rpo", "best-of-n"], 1, TINY)) == repr(found)
    assert {path: path.read_bytes() for path in (out / "runs").rglob("*.jsonl")} == before

    # A run that was killed before its curve was written is run again, and comes to the same.
    (out / "runs" / "rpo-0" / "curve.jsonl").unlink()
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path))
    assert repr(study(out, CONFIGS, ["rpo"], 1, TINY)) == repr(found)
    assert {path: path.read_bytes() for path in (out / "runs").rglob("*.jsonl")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": dataclasses.replace(TINY, pairs=17)}, "other sizes"),
        ({"methods": ["kto"]}, "choose from dpo"),
        ({"seeds": 11}, "1 to 10"),
        ({"configs": Path("nowhere")}, "--configs"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, change, message):
    given = {"out": tiny[0], "configs": CONFIGS, "methods": ["rpo"], "seeds": 1, "sizes": TINY}
    with pytest.raises(ValueError, match=message):
        study(**given | change)


def made(golds):
    """Curves and their prompts' parts: 30 prompts scatter around each point."""
    draw = random.Random(0)
    curves, prompts = {}, {}
    for seed, values in enumerate(golds):
        curves[seed], prompts[seed] = [], []
        for step, gold in enumerate(values):
            own = [PromptPoint(step, each, 2 * step + draw.gauss(0, 1), gold + draw.gauss(0, 1)) for each in range(30)]
            prompts[seed] += own
            proxy, gold_mean = (statistics.fmean(getattr(each, name) for each in own) for name in ("proxy", "gold"))
            kl = step + 0.1 * seed
            curves[seed].append(CurvePoint("s", "m", seed, step, None, None, kl, "k1", proxy, gold_mean, 0.1))
    return curves, prompts


def interval(values):
    """Student's t over three values."""
    mean = statistics.fmean(values)
    return mean, STUDENT_T_3 * statistics.stdev(values) / math.sqrt(3)


def test_a_row_against_plain_arithmetic():
    """The other seeds' mean gold is highest at step 2, 1 and 1: so that is where each run's peak is."""
    curves, prompts = made([[0.0, 50.0, 30.0, 10.0], [0.0, 20.0, 35.0, 15.0], [0.0, 60.0, 70.0, 5.0]])
    golds = [[point.gold for point in curves[seed]] for seed in range(3)]
    peaks = []
    for seed in range(3):
        others = [sum(golds[other][step] for other in range(3) if other != seed) for step in range(4)]
        peaks.append(max(range(4), key=others.__getitem__))
    assert peaks == [2, 1, 1]

    row = row_of("m", curves, prompts)
    assert (row.method, row.seeds) == ("m", 3)
    assert (row.kl.mean, row.kl.half) == pytest.approx(interval([3.0, 3.1, 3.2]), rel=1e-3)
    gained = [gold[-1] - gold[0] for gold in golds]
    assert (row.gained.mean, row.gained.half) == pytest.approx(interval(gained), rel=1e-3)
    lost = [gold[-1] - gold[peak] for gold, peak in zip(golds, peaks, strict=True)]
    assert (row.lost.mean, row.lost.half) == pytest.approx(interval(lost), rel=1e-3)
    meanwhile = [curves[seed][-1].proxy - curves[seed][peaks[seed]].proxy for seed in range(3)]
    assert row.proxy_meanwhile.mean == pytest.approx(statistics.fmean(meanwhile))
    assert row.gold_start.mean == pytest.approx(statistics.fmean(gold[0] for gold in golds))

    # Each prompt's change, averaged over seeds; its mean's normal interval is close to the bootstrap's.
    parts = {(seed, each.place, each.prompt): each.gold for seed, found in prompts.items() for each in found}
    changes = [
        statistics.fmean(parts[seed, 3, prompt] - parts[seed, 0, prompt] for seed in range(3)) for prompt in range(30)
    ]
    error = statistics.stdev(changes) / math.sqrt(30)
    center = statistics.fmean(changes)
    assert (row.gained.low, row.gained.high) == pytest.approx((center - 2 * error, center + 2 * error), abs=error / 2)
    assert f"{row.gained.low:.2f}, {row.gained.high:.2f}" in as_markdown([row])


def test_a_peak_of_noise_is_not_a_loss():
    """Golds that vary without a trend lose nothing on average, though each run's own highest point is above its end."""
    draw = random.Random(1)
    losses, own = [], []
    for _ in range(60):
        curves, prompts = made([[draw.gauss(0, 10) for _ in range(6)] for _ in range(3)])
        losses.append(row_of("m", curves, prompts).lost.mean)
        own += [curve[-1].gold - max(point.gold for point in curve) for curve in curves.values()]
    assert abs(statistics.fmean(losses)) < 3
    assert statistics.fmean(own) < -8


@pytest.mark.slow
def test_every_method_runs(tmp_path, monkeypatch):
    """All of it as shipped but for the number of seeds: each optimizes what it is to, and spends KL on it."""
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    found = {row.method: row for row in study(tmp_path / "out", CONFIGS, METHODS, 1, Sizes())}
    assert tuple(found) == METHODS
    for method, row in found.items():
        assert row.kl.mean > 0.1, method
        if method != "xi-ppo":
            assert row.proxy_end.mean > row.proxy_start.mean, method
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000
