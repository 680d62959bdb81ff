"""Rankings in `--pairs`: every comparison of a ranking counts once, against plain Python."""

import itertools
import json

import pytest

from grmlight.evaluation.benchmarks import PairFile
from grmlight.evaluation.evaluate import evaluate
from tests.evaluation.verdicts import RuleScorer

LENGTH = RuleScorer(lambda text: float(len(text)))

ROWS = [
    {"prompt": "p", "responses": ["a", "bbb", "cc", "dd"], "ratings": [1, 4, 2, 3], "category": "x"},
    {"prompt": "p", "responses": ["a", "bb", "ccc"], "ranks": [1, 2, 3], "category": "x"},
    {"prompt": "q", "responses": ["aa", "b"], "ratings": [1, 2], "category": "y"},
    {"prompt": "q", "responses": ["a", "bb", "ccc"], "ranks": [1, 2, 3], "soft_label": 0.2, "category": "y"},
    {"prompt": "r", "chosen": "aa", "rejected": "b", "category": "y"},
    {"prompt": "s", "responses": ["a", "bb", "ccc"], "ratings": [1, 1, 2], "category": "y"},
    {"prompt": "s", "responses": ["a", "bb"], "ratings": [1, 1]},
    {"prompt": "s", "responses": ["a", "bb", "c"], "ratings": [1, 2]},
    {"prompt": "s", "responses": ["a", "bb"], "ratings": [1, 2], "soft_label": 0.5},
]


def verdicts(row):
    """For each comparison of a row what length says: 1, 0, or one half."""
    if "chosen" in row:
        sides = [(row["chosen"], row["rejected"])]
    else:
        levels = row.get("ratings") or [-rank for rank in row["ranks"]]
        sign = -1 if row.get("soft_label", 1) < 0.5 else 1
        scored = [(sign * level, text) for level, text in zip(levels, row["responses"], strict=True)]
        sides = [
            (one[1], other[1]) if one[0] > other[0] else (other[1], one[1])
            for one, other in itertools.combinations(scored, 2)
            if one[0] != other[0]
        ]
    return [0.5 if len(a) == len(b) else float(len(a) > len(b)) for a, b in sides]


def test_a_rankings_comparisons_count_once_each(tmp_path):
    path = tmp_path / "rankings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    benchmark = PairFile()
    found = evaluate(LENGTH, benchmark, benchmark.read(str(path)))
    right = [verdicts(row) for row in ROWS[:6]]
    assert [len(each) for each in right] == [6, 3, 1, 3, 1, 2]
    rows = {row.category: row for row in found.rows}
    for category, some in (("x", right[:2]), ("y", right[2:]), ("all", right)):
        each = [value for row in some for value in row]
        assert rows[category].n == len(each)
        assert rows[category].accuracy.value == pytest.approx(sum(each) / len(each))
    # The rewards are the lengths, so the ruler says the same.
    assert rows["all"].ruler == rows["all"].accuracy
    assert found.reading.refused == {"tie": ["7", "9"], "bad_number": ["8"]}
    assert found.reading.noted == {"tie": ["6"]}
    kept = [(row.row, row.right, row.pairs) for row in found.kept.rows]
    assert kept == [(str(number), sum(each), len(each)) for number, each in enumerate(right, 1)]


def test_intervals_are_drawn_over_prompts(tmp_path):
    """Rankings of one prompt have no interval, however many comparisons they are."""
    path = tmp_path / "rankings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    benchmark = PairFile()
    (found,) = evaluate(LENGTH, benchmark, benchmark.read(str(path))).rows
    assert found.n == 9
    assert found.accuracy.low != found.accuracy.low
