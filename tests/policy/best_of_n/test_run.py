"""Best-of-n as users run it, with whatever goes wrong; the dice answer."""

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys

import pytest

from grmlight.data.options import PrepareOptions
from grmlight.data.prepare import prepare
from grmlight.lab import world_files
from grmlight.policy.best_of_n import BestOfN, SweepOptions, named_rewards, run, run_best_of_n
from grmlight.policy.read_prompts import read_prompts
from grmlight.policy.relabel import relabel
from grmlight.policy.sampler import SamplingOptions
from tests.policy.best_of_n.samplers import Dice, Mute

LM = "package:grmlight.lab/assets/lm"
HERE = "tests.policy.best_of_n.test_run"


def length(prompt: str, response: str) -> float:
    return len(response)


def colors(prompt: str, response: str) -> float:
    return sum(response.count(word) for word in ("red", "green", "blue"))


def constant(prompt: str, response: str) -> float:
    return 1.0


def blind(prompt: str, response: str) -> float:
    return math.nan


def fussy(prompt: str, response: str) -> float:
    return math.nan if prompt == "two" or response == "" else len(response)


def job(folder, rewards=(), gold=None, samples=40, **others):
    (folder / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n{"prompt": "three"}\n')
    return BestOfN(
        LM,
        str(folder / "prompts.jsonl"),
        folder / "out",
        named_rewards([f"{name}={HERE}.{name}" for name in rewards]),
        gold and f"{HERE}.{gold}",
        SamplingOptions(samples=samples),
        **others,
    )


@pytest.fixture
def dice(monkeypatch):
    """Let the dice answer in place of the LM."""

    def roll(sampler=None):
        monkeypatch.setattr(run, "open_sampler", lambda name: sampler or Dice())

    roll()
    return roll


def test_a_constant_reward_is_named_and_counted(tmp_path, dice):
    found = run_best_of_n(job(tmp_path, ["length", "constant"], "colors"))
    assert "reward constant: constant, its curve is that of a random choice" in found.notes
    assert "reward constant: the same for every answer to 3 prompts" in found.notes
    assert all(abs(point.gold) < 1e-12 for point in found.points if point.method == "constant")


def test_a_reward_of_nothing_but_nan_is_one_line_and_the_pool_stays(tmp_path, dice):
    with pytest.raises(ValueError, match="reward blind: scores none of the 120 answers"):
        run_best_of_n(job(tmp_path, ["length", "blind"]))
    assert len((tmp_path / "out" / "pool.jsonl").read_text().splitlines()) == 3


def test_prompts_that_a_reward_cannot_score_are_left_out_by_name(tmp_path, dice):
    found = run_best_of_n(job(tmp_path, ["fussy"], "length"))
    assert "reward fussy: 40 answers left out, not scored" in found.notes
    assert "left out: prompts without an answer that all rewards score: 2" in found.notes
    assert found.report["max_n"] == 40


def test_only_end_of_text_is_counted_and_one_line(tmp_path, dice):
    dice(Mute())
    with pytest.raises(ValueError, match="reward fussy: scores none of the 120 answers"):
        run_best_of_n(job(tmp_path, ["fussy"]))
    found = run_best_of_n(job(tmp_path, ["length"], pairs=tmp_path / "pairs.jsonl"))
    assert found.report["empty"] == 120
    assert found.report["pairs"]["rows"] == 0


def test_refused_prompts_are_counted(tmp_path, dice):
    dice(Dice(refuse=(1,)))
    found = run_best_of_n(job(tmp_path, ["length"]))
    assert "refused: prompt 2 is empty; leave it out" in found.notes
    assert found.report["answers"] == 80


def test_pairs_without_a_label_are_as_they_were_drawn(tmp_path, dice):
    found = run_best_of_n(job(tmp_path, samples=2, pairs=tmp_path / "pairs.jsonl"))
    assert found.points == []
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert found.report["pairs"] == {"file": str(tmp_path / "pairs.jsonl"), "rows": len(rows), "labeled_by": None} | {
        "left_out": {}
    }
    assert all(list(row) == ["id", "prompt", "chosen", "rejected", "chosen_ended", "rejected_ended"] for row in rows)
    assert not (tmp_path / "out" / "curves.jsonl").exists()


def test_labels_order_pairs_and_pick_the_best(tmp_path, dice):
    files = {"pairs": tmp_path / "pairs.jsonl", "best": tmp_path / "best.jsonl", "n": 8}
    run_best_of_n(job(tmp_path, ["colors"], "length", label="gold", **files))
    for name in ("pairs", "best"):
        for row in map(json.loads, files[name].read_text().splitlines()):
            assert len(row["chosen"]) - len(row["rejected"]) == row["margin"] > 0
    pool = [json.loads(line) for line in (tmp_path / "out" / "pool.jsonl").read_text().splitlines()][2]
    rows = [json.loads(line) for line in files["best"].read_text().splitlines()]
    for row, answers in zip(rows, pool["answers"], strict=True):
        assert len(row["chosen"]) == max(len(text) for text, _, _ in answers[:8])
        assert len(row["rejected"]) == min(len(text) for text, _, _ in answers[:8])


def test_another_policys_pool_is_refused(tmp_path, dice, monkeypatch):
    run_best_of_n(job(tmp_path, ["length"]))
    with pytest.raises(ValueError, match="was sampled with another seed; name another folder"):
        run_best_of_n(job(tmp_path, ["length"], seed=1))
    monkeypatch.setattr(run, "policy_identity", lambda name: "other")
    with pytest.raises(ValueError, match="was sampled with another policy; name another folder"):
        run_best_of_n(job(tmp_path, ["length"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 4}, "--best FILE and --n K go together"),
        ({"best": "best.jsonl", "n": 41, "rewards": ["length"]}, "at most the 40 samples"),
        ({"best": "best.jsonl", "n": 4}, "--best needs something to choose by"),
        ({"label": "gold"}, "label 'gold' is none of nothing: name a --reward"),
        ({"pairs": "no/where.jsonl"}, "cannot be written; name a file in a folder"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, change, message):
    given = {name: tmp_path / value if name in ("best", "pairs") else value for name, value in change.items()}
    with pytest.raises(ValueError, match=message):
        job(tmp_path, **given)


def test_two_rewards_of_one_name_are_one_line():
    with pytest.raises(ValueError, match=r"reward 'a': the name is taken; give every reward one of its own"):
        named_rewards(["a=x", "a=y"])
    with pytest.raises(ValueError, match="reward 'mean': the name is taken"):
        named_rewards(["mean=x"])
    assert named_rewards(["x.y", "b=z"]) == {"x.y": "x.y", "b": "z"}


def test_max_n_without_enough_answers_is_one_line(tmp_path, dice):
    with pytest.raises(ValueError, match="max_n is 41, and no prompt has more than 40 usable answers"):
        run_best_of_n(job(tmp_path, ["length"], sweep=SweepOptions(max_n=41)))


def test_a_reward_is_looked_at_before_anything_is_sampled(tmp_path, dice):
    with pytest.raises(ValueError, match="reward 'nowhere'"):
        run_best_of_n(BestOfN(LM, "none.jsonl", tmp_path / "out", {"a": "nowhere"}, None, SamplingOptions(samples=2)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pairs", "best"])
@pytest.mark.parametrize(
    "path", ["prompts.jsonl", "out/pool.jsonl", "out/scores/x", "out/report.json", "out/curves.png", "out/../link"]
)
def test_data_sets_never_replace_what_is_read_or_written(tmp_path, name, path):
    (tmp_path / "out" / "scores").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "prompts.jsonl")
    others = {"n": 4} if name == "best" else {}
    with pytest.raises(ValueError, match=f"--{name} .*: is another file of this command, or lies in one"):
        job(tmp_path, ["length"], **{name: tmp_path / path}, **others)
    assert read_prompts(str(tmp_path / "prompts.jsonl")) == ["one", "two", "three"]


def test_data_sets_never_replace_each_other_nor_prompts_what_is_written(tmp_path):
    (tmp_path / "no").mkdir()
    with pytest.raises(ValueError, match=r"--best .*same\.jsonl: is another file of this command"):
        job(tmp_path, ["length"], pairs=tmp_path / "same.jsonl", best=tmp_path / "no" / ".." / "same.jsonl", n=4)
    with pytest.raises(ValueError, match=r"out/curves\.jsonl: is written by this command"):
        BestOfN(LM, str(tmp_path / "out/curves.jsonl"), tmp_path / "out", {}, None, SamplingOptions(samples=2))


def test_data_sets_may_lie_in_a_folder_that_is_made_for_them(tmp_path, dice):
    run_best_of_n(job(tmp_path, samples=2, pairs=tmp_path / "out" / "pairs.jsonl"))
    assert (tmp_path / "out" / "pairs.jsonl").read_text()


@pytest.mark.parametrize("spec", ["=grmlight.lab.GoldReward", "name=", "", " = "])
def test_a_reward_of_half_a_spec_is_one_line(spec):
    with pytest.raises(ValueError, match="one side is empty; give it as SPEC or NAME=SPEC"):
        named_rewards([spec])


def test_prompts_are_named_by_their_rows(tmp_path, dice):
    dice(Dice(refuse=(1,)))
    given = job(tmp_path, ["fussy"], "length", samples=8, pairs=tmp_path / "pairs.jsonl")
    (tmp_path / "prompts.jsonl").write_text('\n\n{"prompt": "one"}\n\n{"prompt": "three"}\n{"prompt": "two"}\n')
    found = run_best_of_n(given)
    assert "refused: prompt 5 is empty; leave it out" in found.notes
    assert "left out: prompts without an answer that all rewards score: 6" in found.notes
    assert found.report["fewest_usable"]["prompt"] == 3
    assert [json.loads(line)["id"] for line in (tmp_path / "pairs.jsonl").read_text().splitlines()] == ["prompt-3"]
    assert found.report["pairs"]["left_out"] == {"too few usable answers": [6]}
    dice(Dice(refuse=(0, 1, 2)))
    for _ in range(2):
        with pytest.raises(ValueError, match="none of the 3 prompts can be answered: prompt 3 is empty"):
            run_best_of_n(dataclasses.replace(given, out=tmp_path / "refused"))


class Terse(Dice):
    """Often says nothing, or only space."""

    def say(self, seed, number, sample):
        found = super().say(seed, number, sample)
        if number == 2 or sample % 3 == 0:
            return dataclasses.replace(found, text=" " * (sample % 2))
        return found


def test_the_best_have_text_and_prompts_without_a_row_are_counted(tmp_path, dice):
    dice(Terse())
    found = run_best_of_n(job(tmp_path, ["length", "constant"], best=tmp_path / "best.jsonl", n=8, label="length"))
    rows = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["prompt-1", "prompt-2"]
    assert all(row["chosen"].strip() and row["rejected"].strip() for row in rows)
    assert found.report["best"]["left_out"] == {"too few usable answers": [3]}
    assert "best: prompts left out, too few usable answers: 3" in found.notes
    assert found.report["empty"] == 40 + 2 * 14
    tied = run_best_of_n(job(tmp_path, ["constant"], best=tmp_path / "best.jsonl", n=8))
    assert tied.report["best"]["left_out"] == {"all worth the same": [1, 2], "too few usable answers": [3]}


class Unended(Dice):
    def say(self, seed, number, sample):
        return dataclasses.replace(super().say(seed, number, sample), ended=sample > 0)


class Ending:
    """What ended is better."""

    name = "ending"

    def score(self, groups):
        return [[float(each) for each in group.ended] for group in groups]


def test_relabel_learns_whether_answers_ended(tmp_path, dice, monkeypatch):
    dice(Unended())
    run_best_of_n(job(tmp_path, samples=12, pairs=tmp_path / "pairs.jsonl"))
    found = relabel(str(tmp_path / "pairs.jsonl"), tmp_path / "one.jsonl", Ending(), noise=0.5, seed=1)
    assert (found.used, found.turned) == (3, 3)
    assert 0 < found.flipped < 3
    for row in map(json.loads, (tmp_path / "one.jsonl").read_text().splitlines()):
        assert (row["chosen_ended"], row["rejected_ended"]) == (not row["flipped"], row["flipped"])
    again = relabel(str(tmp_path / "one.jsonl"), tmp_path / "two.jsonl", Ending())
    assert (again.used, again.turned) == (3, found.flipped)
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    prepared = prepare(str(tmp_path / "two.jsonl"), str(world_files().tokenizer), PrepareOptions())
    assert prepared.report["used"] == 3


def test_two_runs_do_not_share_a_folder(tmp_path, dice):
    given = job(tmp_path, ["length"], samples=4)

    class Second(Dice):
        def generate(self, *args, **named):
            code = (
                "import sys; from pathlib import Path; from grmlight.data.files import sole_writer\n"
                "with sole_writer(Path(sys.argv[1])): pass"
            )
            ran = subprocess.run([sys.executable, "-c", code, str(given.out)], capture_output=True, text=True)
            assert f"out: process {os.getpid()} on {socket.gethostname()} is writing to it" in ran.stderr
            return super().generate(*args, **named)

    sampler = Second()
    dice(sampler)
    run_best_of_n(given)
    assert sampler.calls == 1
    dice()
    run_best_of_n(dataclasses.replace(given, sampling=SamplingOptions(samples=8)))


def test_a_pool_that_was_cut_off_never_keeps_the_scores_of_other_answers(tmp_path, dice, monkeypatch):
    """A pool that lost its end and grew to another number has other blocks, which are scored anew."""
    prompts = "".join(json.dumps({"prompt": f"p{number}"}) + "\n" for number in range(3))
    given = job(tmp_path, ["length"], samples=300)
    (tmp_path / "prompts.jsonl").write_text(prompts)
    run_best_of_n(given)
    pool = tmp_path / "out" / "pool.jsonl"
    lines = pool.read_bytes().splitlines(keepends=True)
    pool.write_bytes(b"".join(lines[:4]))

    class Louder(Dice):
        def say(self, seed, number, sample):
            found = super().say(seed, number, sample)
            return dataclasses.replace(found, text=found.text + " and so on")

    dice(Louder())
    found = run_best_of_n(dataclasses.replace(given, sampling=SamplingOptions(samples=400)))
    fresh = run_best_of_n_from(pool, given, tmp_path / "fresh")
    assert [point.proxy for point in found.points] == [point.proxy for point in fresh.points]


def run_best_of_n_from(pool, given, out):
    """The same pool without any scores."""
    out.mkdir()
    (out / "pool.jsonl").write_bytes(pool.read_bytes())
    return run_best_of_n(dataclasses.replace(given, out=out, sampling=SamplingOptions(samples=400)))
