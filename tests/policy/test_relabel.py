"""Relabeling: every row is accounted for, labels follow the reward, flips belong to the data."""

import json
import math

import numpy as np
import pytest

from grmlight.cli import main
from grmlight.data.options import PrepareOptions
from grmlight.data.prepare import prepare
from grmlight.lab import GoldReward, world_files
from grmlight.lab.pairs import read_rows
from grmlight.policy.relabel import flips, relabel


class Rule:
    """Longer is better; an answer with "?" cannot be scored."""

    name = "rule"

    def score(self, groups):
        return [[math.nan if "?" in each else len(each) for each in group.responses] for group in groups]


ROWS = [
    {"prompt": "a", "chosen": "long one", "rejected": "short", "id": "x", "category": "c", "source": "s"},
    {"prompt": "a", "chosen": "short", "rejected": "long one"},
    {"prompt": "a", "chosen": "same", "rejected": "emas"},
    {"prompt": "a", "chosen": "what?", "rejected": "that"},
    {"prompt": "a", "chosen": "", "rejected": "that"},
    {"prompt": "a", "responses": ["one", "two", "threes"], "ratings": [1, 2, 3]},
    {"nothing": 1},
    {"prompt": "b", "responses": ["one", "threes"], "ratings": [1, 1]},
]


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "pairs.jsonl"


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_is_accounted_for(pairs, tmp_path):
    found = relabel(str(pairs), tmp_path / "out.jsonl", Rule())
    assert (found.rows, found.used, found.ties, found.not_scored) == (8, 3, [3], [4])
    assert found.refused == {"empty": [5], "ranking": [6], "unknown_columns": [7]}
    assert (found.turned, found.flipped) == (2, 0)
    assert found.used + len(found.ties) + len(found.not_scored) + sum(map(len, found.refused.values())) == found.rows
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert report["refused"] == found.refused
    assert "8 rows: 3 used, 2 of them turned around, 0 flipped" in found.describe()
    first, second, third = rows_of(tmp_path / "out.jsonl")
    assert first == {
        "id": "x", "source": "s", "category": "c", "prompt": "a", "chosen": "long one", "rejected": "short",
        "margin": 3, "gold_chosen": 8, "gold_rejected": 5, "flipped": False,
    }  # fmt: skip
    assert second["chosen"] == "long one"
    assert third["chosen"] == "threes"


def test_flips_are_a_share_drawn_from_seed_and_row():
    drawn = [flips(0.25, 0, row) for row in range(20_000)]
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.01)
    assert drawn[:50] == [flips(0.25, 0, row) for row in range(50)]
    assert drawn[:100] != [flips(0.25, 1, row) for row in range(100)]
    assert not any(flips(0.0, 0, row) for row in range(100))
    assert all(flips(1.0, 0, row) for row in range(100))
    assert all(flips(0.5, 0, row) for row in range(20_000) if drawn[row])


def test_a_flipped_row_says_so_and_keeps_its_margin(pairs, tmp_path):
    clean = relabel(str(pairs), tmp_path / "clean.jsonl", Rule())
    noisy = relabel(str(pairs), tmp_path / "noisy.jsonl", Rule(), noise=1.0, seed=3)
    assert (noisy.turned, noisy.flipped) == (clean.turned, 3)
    for one, other in zip(rows_of(tmp_path / "clean.jsonl"), rows_of(tmp_path / "noisy.jsonl"), strict=True):
        assert (one["chosen"], one["rejected"]) == (other["rejected"], other["chosen"])
        assert other["flipped"] is True
        assert one["margin"] == other["margin"] == abs(other["gold_chosen"] - other["gold_rejected"])


def test_the_worlds_pairs_get_the_golds_labels_and_train(tmp_path, monkeypatch, capsys):
    files, out = world_files(), tmp_path / "out.jsonl"
    main(["relabel", str(files.train), "--reward", "grmlight.lab.GoldReward", "--out", str(out), "--noise", "0.25"])
    printed = capsys.readouterr().out
    rows, given = rows_of(out), read_rows(files.train)
    assert f"1000 rows: {len(rows)} used" in printed
    assert np.mean([row["flipped"] for row in rows]) == pytest.approx(0.25, abs=0.04)
    gold = files.gold
    for row in rows:
        scores = [gold.score(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        assert (scores[0] < scores[1]) == row["flipped"]
        assert scores == [row["gold_chosen"], row["gold_rejected"]]
    assert [row["id"] for row in rows] == [row["id"] for row in given][: len(rows)]
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    prepared = prepare(str(out), str(files.tokenizer), PrepareOptions())
    assert prepared.report["used"] == len(rows)


def test_rows_that_the_gold_does_not_know_are_counted(tmp_path):
    known = {"prompt": "tell two animals color", "chosen": "cat red", "rejected": "dog blue , cat red"}
    rows = [known, known | {"prompt": "why?"}, known, known | {"prompt": "how?"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = relabel(str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", GoldReward())
    assert (found.used, found.not_scored) == (2, [2, 4])
    assert "not scored: 2, row 2 first" in found.describe()


def test_what_says_nothing_of_ends_is_taken_as_ended(pairs, tmp_path):
    seen = []

    class Noting(Rule):
        def score(self, groups):
            seen.extend(group.ended for group in groups)
            return super().score(groups)

    relabel(str(pairs), tmp_path / "out.jsonl", Noting())
    assert set(seen) == {()}
    (tmp_path / "half.jsonl").write_text(json.dumps(ROWS[0] | {"rejected_ended": False}) + "\n")
    relabel(str(tmp_path / "half.jsonl"), tmp_path / "out.jsonl", Noting())
    assert seen[-1] == (True, False)


def test_messages_stay_messages(tmp_path):
    talk = [{"role": "user", "content": "tell two animals color"}]
    rows = [{"prompt": talk, "chosen": "cat red", "rejected": "dog blue , cat red"}]
    (tmp_path / "in.jsonl").write_text(json.dumps(rows[0]) + "\n")
    relabel(str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", GoldReward())
    (row,) = rows_of(tmp_path / "out.jsonl")
    assert row["prompt"] == talk


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": 1.5}, "noise is a share between 0 and 1, got 1.5"),
        ({"out": "pairs.jsonl"}, "is the source, or lies in it"),
        ({"out": "no/where.jsonl"}, "cannot be written; name a file in a folder that exists"),
        ({"source": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(pairs, tmp_path, change, message):
    given = {"source": "pairs.jsonl", "out": "out.jsonl", "noise": 0.0} | change
    with pytest.raises(ValueError, match=message):
        relabel(str(tmp_path / given["source"]), tmp_path / given["out"], Rule(), given["noise"])


def test_nothing_left_is_one_line(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps(ROWS[2]) + "\n")
    with pytest.raises(
        ValueError, match=r"no row is left\. 1 rows: 0 used.* ties: 1, row 3 first|ties: 1, row 1 first"
    ):
        relabel(str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", Rule())
    assert not (tmp_path / "out.jsonl").exists()
