"""RewardBench 1 and 2: their scores against computations of their own."""

import random

import numpy as np
import pytest

from grmlight.evaluation.benchmarks.rewardbench import COUNTS, WEIGHTS, RewardBench
from grmlight.evaluation.clustered import SectionAverage
from grmlight.evaluation.evaluate import evaluate, keep_rows
from grmlight.evaluation.rows import evaluation_rows_file, read_rows
from tests.evaluation.test_ties import slow_ties
from tests.evaluation.verdicts import NUMBER, all_rows, results, write

PUBLISHED = """
92.6 95.0 87.7 91.4 96.4
91.5 95.5 86.2 90.8 93.6
90.9 91.6 84.9 92.7 94.6
88.4 93.0 77.2 92.2 91.2
87.0 98.6 67.8 89.2 92.3
85.8 96.4 67.1 88.2 91.6
84.7 89.4 75.2 85.5 88.8
81.0 97.2 59.6 86.9 80.3
75.3 95.5 48.7 80.0 76.8
73.7 94.1 46.1 79.6 75.0
"""
"""RewardBench of the GRM authors' ten released models, by their README: average, Chat, Chat Hard, Safety, Reasoning."""


@pytest.mark.parametrize("line", PUBLISHED.split("\n")[1:-1])
def test_published_sections_give_the_published_average(line):
    average, *sections = map(float, line.split())
    sums = [1.0]
    sums += [float(count) for subsets in COUNTS.values() for count in subsets.values()]
    for score, subsets in zip(sections, COUNTS.values(), strict=True):
        sums += [count * score / 100 for count in subsets.values()]
    found = SectionAverage(WEIGHTS, 1).figure(np.array([sums]))[0]
    assert 100 * found == pytest.approx(average, abs=0.06)


def rewardbench_rows(draw, accuracies):
    """The whole benchmark with a given number of right pairs in each subset."""
    rows = []
    for subsets in COUNTS.values():
        for name, count in subsets.items():
            accuracies[name] = draw.randint(0, count)
            for number in range(count):
                won = number < accuracies[name]
                rows.append({"id": len(rows), "subset": name, "prompt": f"{name} {number // 2}"})
                rows[-1] |= {"chosen": f"a {int(won)}", "rejected": f"b {int(not won)}"}
    draw.shuffle(rows)
    return rows


def test_rewardbench_sections_equal_an_independent_computation(tmp_path):
    right = {}
    rows = rewardbench_rows(random.Random(3), right)
    assert len(rows) == 2985
    found, reading = results("rewardbench", write(tmp_path / "rb.jsonl", rows))
    assert not reading.noted
    for subsets in COUNTS.values():
        for name, count in subsets.items():
            assert found[name].accuracy.value == pytest.approx(right[name] / count)
            assert found[name].n == count
    chat = ["alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"]
    expected = {"Chat": sum(right[name] for name in chat) / 358}
    hard = ["mt-bench-hard", "llmbar-natural"] + [
        f"llmbar-adver-{n}" for n in ("neighbor", "GPTInst", "GPTOut", "manual")
    ]
    expected["Chat Hard"] = sum(right[name] for name in hard) / 456
    safety = [
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ]
    expected["Safety"] = sum(right[name] for name in safety) / 740
    code = sum(right[f"hep-{language}"] for language in ("cpp", "go", "java", "js", "python", "rust"))
    expected["Reasoning"] = (code / 984 + right["math-prm"] / 447) / 2
    for section, value in expected.items():
        assert found[section].accuracy.value == pytest.approx(value), section
        assert found[section].accuracy.low < value < found[section].accuracy.high
    assert list(found)[-1] == "average"
    assert found["average"].accuracy.value == pytest.approx(sum(expected.values()) / 4)
    assert found["average"].n == 2985
    assert found["average"].ruler.value == 0.5


def test_kept_rows_add_up_to_the_sections(tmp_path):
    benchmark = RewardBench()
    rows = rewardbench_rows(random.Random(4), {})
    math = [row for row in rows if row["subset"] == "math-prm"]
    path = write(tmp_path / "rb.jsonl", [row for row in rows if row not in math[40:]])
    result = evaluate(NUMBER, benchmark, benchmark.read(str(path)))
    found = {row.category: row.accuracy.value for row in result.rows}
    keep_rows([result], tmp_path)
    kept = read_rows(evaluation_rows_file(tmp_path, "rewardbench"))
    assert [row.row for row in kept.rows] == [example.row for example in result.reading.examples]
    assert {row.category for row in kept.rows} == set(COUNTS)
    assert all(row.stratum in COUNTS[row.category] for row in kept.rows)
    for section in COUNTS:
        rows = [row for row in kept.rows if row.category == section]
        assert sum(row.right for row in rows) / sum(row.pairs for row in rows) == pytest.approx(found[section])


def test_rewardbench_counts_equal_rewards_as_wrong_and_says_what_is_missing(tmp_path):
    rows = [
        {"subset": "math-prm", "prompt": "p", "chosen": "x 1", "rejected": "y 1"},
        {"subset": "math-prm", "prompt": "p", "chosen": "x 2", "rejected": "y 1"},
        {"subset": "hep-go", "prompt": "q", "chosen": "x 2", "rejected": "y 1"},
        {"subset": "hep-perl", "prompt": "q", "chosen": "x 2", "rejected": "y 1"},
        {"subset": "hep-go", "prompt": "q", "chosen": "", "rejected": "y 1"},
        {"subset": "hep-go", "prompt": "q", "chosen": "y 1", "rejected": "y 1"},
        {"subset": "hep-go", "prompt": "q", "chosen": "y 1"},
        {"subset": "hep-go", "prompt": 3, "chosen": "y 1", "rejected": "z"},
    ]
    path = write(tmp_path / "rb.jsonl", rows)
    with path.open("a") as file:
        file.write("\n{broken\n[1]\n")
    found, reading = results("rewardbench", path)
    assert found["math-prm"].accuracy.value == 0.5
    assert found["Reasoning"].accuracy.value == pytest.approx((984 * 0.5 + 164) / (984 + 164))
    assert found["average"].accuracy.value == found["Reasoning"].accuracy.value
    assert list(found) == ["math-prm", "hep-go", "Reasoning", "average"]
    assert reading.refused == {
        "unknown_subset": ["4"],
        "empty": ["5"],
        "identical": ["6"],
        "missing_columns": ["7"],
        "non_string": ["8"],
        "invalid_json": ["10", "11"],
    }
    assert all_rows(reading) == ["1", "2", "3", "4", "5", "6", "7", "8", "10", "11"]
    assert reading.rows == 10
    assert "math-prm: 2 of 447" in reading.noted["subset_not_whole"]


def ties_row(kind, number, right, wrong):
    answers = [[f"answer {value}" for value in values] for values in (right, wrong)]
    return {"id": f"{kind}:{number}", "subset": "Ties", "prompt": f"{kind} {number}"} | dict(
        zip(("chosen", "rejected"), answers, strict=True)
    )


def test_rewardbench2_is_best_of_four_and_ties(tmp_path):
    draw = random.Random(2)
    rows, shares = [], {}
    for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
        points = []
        for number in range(9):
            values = [draw.randint(0, 5) for _ in range(4)]
            points.append((values[0] == max(values)) / values.count(max(values)))
            answers = [f"answer {value}" for value in values]
            rows.append({"id": str(number), "subset": subset, "prompt": f"{subset} {number}"})
            rows[-1] |= {"chosen": answers[:1], "rejected": answers[1:], "num_correct": 1}
        shares[subset] = sum(points) / 9
    prompts = []
    for number in range(7):
        ref = [draw.randint(3, 5)], [draw.randint(0, 4) for _ in range(3)]
        tied = [draw.randint(3, 5) for _ in range(4)], [draw.randint(0, 4) for _ in range(20)]
        prompts.append((ref, tied))
        rows += [ties_row("ref", number, *ref), ties_row("tied", number, *tied)]
    draw.shuffle(rows)
    found, reading = results("rewardbench2", write(tmp_path / "rb2.jsonl", rows))
    assert not reading.refused
    assert not reading.noted
    for subset, share in shares.items():
        assert found[subset].accuracy.value == pytest.approx(share)
    assert found["Ties"].accuracy.value == pytest.approx(slow_ties(prompts))
    assert found["average"].accuracy.value == pytest.approx((sum(shares.values()) + slow_ties(prompts)) / 6)
    assert found["average"].n == 45 + 14
    # All answers are equally long, so the ruler has no opinion: a quarter each, and nothing of Ties.
    assert found["Math"].ruler.value == 0.25
    assert found["Ties"].ruler.value == 0.0


def test_rewardbench2_refuses_what_does_not_fit(tmp_path):
    rows = [
        ties_row("ref", 1, [2], [1]),
        ties_row("tied", 1, [2, 3], [1]),
        ties_row("tied", 1, [2, 3], [1]),
        ties_row("tied", 2, [2], [1]),
        ties_row("ref", 3, [2], [1]),
        ties_row("once", 3, [2], [1]),
        ties_row("ref", 4, [2], []),
        {"id": "5", "subset": "Math", "prompt": "p", "chosen": ["a 1", "b 1"], "rejected": ["c 1"]},
        {"id": "6", "subset": "Math", "prompt": "p", "chosen": ["a 1"], "rejected": ["c 1", " "]},
    ]
    found, reading = results("rewardbench2", write(tmp_path / "rb2.jsonl", rows))
    assert reading.refused == {
        "duplicate": ["3"],
        "wrong_number_of_right_answers": ["4"],
        "unknown_ties_id": ["6"],
        "no_answers": ["7"],
        "several_right_answers": ["8"],
        "empty": ["9"],
    }
    assert reading.noted == {"ties_without_its_other_half": ["5"]}
    assert found["average"].n == 3
