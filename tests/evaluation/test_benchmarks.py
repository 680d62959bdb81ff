"""Benchmarks: their definitions against computations of their own, and every row accounted for."""

import gzip
import json
import random

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grmlight.data.texts import final_answer
from grmlight.evaluation.benchmarks import BENCHMARKS, PairFile, read_benchmark
from grmlight.evaluation.benchmarks.rewardbench import COUNTS, WEIGHTS, RewardBench
from grmlight.evaluation.clustered import SectionAverage
from grmlight.evaluation.evaluate import evaluate, keep_rows
from grmlight.evaluation.rows import read_rows
from tests.evaluation.test_ties import slow_ties
from tests.evaluation.verdicts import RuleScorer

NUMBER = RuleScorer(lambda answer: float(answer.split()[-1]))
"""An answer's reward is its last word."""

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


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def all_rows(reading):
    """Every row's label, used or refused."""
    refused = [row for rows in reading.refused.values() for row in rows]
    return sorted([example.row for example in reading.examples] + refused, key=int)


def results(name, path, scorer=NUMBER):
    found = evaluate(scorer, *read_benchmark(f"{name}={path}"))
    return {row.category: row for row in found.rows}, found.reading


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
    kept = read_rows(tmp_path / "rows-rewardbench.json")
    assert [row.row for row in kept.rows] == [example.row for example in result.reading.examples]
    assert {row.category for row in kept.rows} == set(COUNTS)
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


def conversation(*contents):
    return [{"role": ("user", "assistant")[place % 2], "content": each} for place, each in enumerate(contents)]


def judgment(winner, turn, a=("one 1", "two 9"), b=("one 2", "two 3"), judge="expert_1", question="q"):
    sides = [conversation(question, first, "go on", second) for first, second in (a, b)]
    found = {"question_id": 81, "winner": winner, "judge": judge, "turn": turn}
    return found | {"conversation_a": sides[0], "conversation_b": sides[1]}


def test_mtbench_in_the_papers_mode_and_clean(tmp_path):
    rows = [
        judgment("model_a", 2),  # A's second answer has 9, B's has 3: right
        judgment("model_b", 2),  # wrong
        judgment("tie", 2),  # in the paper B's win: wrong
        judgment("model_a", 1),  # on turn 1 B is ahead, the whole conversation has A ahead
        judgment("model_b", 1, judge="gpt4_pair"),
        judgment("tie (inconsistent)", 1, judge="gpt4_pair"),
        judgment("model_b", 2, a=("x 1", " "), b=("y 1", "z 2"), judge="gpt4_pair"),
        judgment("model_a", 3),
    ]
    path = write(tmp_path / "mt.jsonl", rows)

    def answer(text):
        return float(text.split()[-1]) if text.strip() else 0.0

    paper, reading = results("mtbench", path, RuleScorer(answer))
    # By row: right, wrong, wrong, right, wrong, wrong, right, right.
    assert paper["all"].n == 8
    assert paper["all"].accuracy.value == 4 / 8
    assert paper["human"].accuracy.value == 3 / 5
    assert paper["gpt4_pair"].accuracy.value == 1 / 3
    assert not reading.refused
    assert reading.noted["tie_counted_as_win_of_b"] == ["3", "6"]
    assert reading.noted["verdict_on_turn_1_taken_for_both"] == ["4", "5", "6"]
    assert reading.noted["empty"] == ["7"]

    clean, reading = results("mtbench_clean", path, RuleScorer(answer))
    # Rows 1, 2, 4, 5: right, wrong, wrong, right.
    assert clean["all"].n == 4
    assert clean["all"].accuracy.value == 0.5
    assert reading.refused == {"tie": ["3", "6"], "empty": ["7"], "unknown_turn": ["8"]}
    first = reading.examples[2].group
    assert [final_answer(response) for response in first.responses] == ["one 1", "one 2"]
    assert all_rows(reading) == [str(number) for number in range(1, 9)]


def test_mtbench_counts_equal_rewards_as_wrong_in_the_papers_mode_alone(tmp_path):
    path = write(tmp_path / "mt.jsonl", [judgment("model_a", 2), judgment("model_b", 2)])
    constant = RuleScorer(lambda _: 1.0)
    assert results("mtbench", path, constant)[0]["all"].accuracy.value == 0.0
    assert results("mtbench_clean", path, constant)[0]["all"].accuracy.value == 0.5


def test_a_verdict_on_conversations_that_do_not_fit_is_refused(tmp_path):
    rows = [judgment("model_a", 2), judgment("model_a", 2), judgment("model_a", 2), judgment("nobody", 2)]
    rows[1]["conversation_b"][0]["content"] = "another question"
    rows[2]["conversation_a"].pop()
    path = write(tmp_path / "mt.jsonl", rows)
    assert read_benchmark(f"mtbench={path}")[1].refused == {"prompt_differs": ["2"], "role_order": ["3"]}
    clean = read_benchmark(f"mtbench_clean={path}")[1]
    assert clean.refused == {"prompt_differs": ["2"], "role_order": ["3"], "unknown_winner": ["4"]}


@pytest.mark.shared_data
def test_every_row_of_the_shared_hhh_is_used(shared_data):
    benchmark, reading = read_benchmark(f"hhh={shared_data / 'hhh_alignment_a.jsonl'}")
    assert reading.rows == len(reading.examples) == 112
    assert not reading.refused
    assert [example.row for example in reading.examples] == [str(number) for number in range(1, 113)]
    assert len({example.prompt for example in reading.examples}) == 54
    dialogues = [example.group.prompt for example in reading.examples if not isinstance(example.group.prompt, str)]
    assert len(dialogues) == 10
    assert {len(turns) for turns in dialogues} == {3, 5}
    assert all(turns[-1]["role"] == "user" and "\n\nHuman:" not in turns[-1]["content"] for turns in dialogues)
    found = evaluate(RuleScorer(len), benchmark, reading).rows
    counts = {row.category: row.n for row in found}
    assert counts == {"harmless": 29, "helpful": 30, "honest": 31, "other": 22, "all": 112}
    for row in found:
        assert row.ruler.value == pytest.approx(row.accuracy.value, abs=0.05)
        assert row.length_correlation.value == pytest.approx(1.0)


def hhh_origin(number, won=True):
    return {"input": f"q {number}", "targets": {"choices": ["a 1", "b 2"], "labels": [0, 1] if won else [1, 0]}}


def test_the_origins_hhh_files_are_read_by_folder_and_name(tmp_path):
    """As the hub's parquet copies lie: CATEGORY/test/0000.parquet; and as files CATEGORY.jsonl."""
    flat, nested = tmp_path / "flat", tmp_path / "nested"
    flat.mkdir()
    for name, count in (("harmless", 2), ("other", 1)):
        rows = [hhh_origin(number, number == 0) for number in range(count)]
        write(flat / f"{name}.jsonl", rows)
        (nested / name / "test").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), nested / name / "test" / "0000.parquet")
    for folder, first in ((flat, "harmless.jsonl:1"), (nested, "harmless/test/0000.parquet:1")):
        found, reading = results("hhh", folder)
        assert {category: row.accuracy.value for category, row in found.items()} == {
            "harmless": 0.5,
            "other": 1.0,
            "all": pytest.approx(2 / 3),
        }
        assert reading.examples[0].row == first


def test_bad_hhh_rows_are_refused(tmp_path):
    rows = [hhh_origin(0) | {"category": "honest"} for _ in range(4)]
    rows[1]["targets"] = {"choices": ["a 1", "b 2"], "labels": [1, 1]}
    rows[2]["category"] = "nice"
    rows[3]["input"] = "a\n\nAssistant: b"
    _, reading = results("hhh", write(tmp_path / "x.jsonl", rows))
    assert reading.refused == {"unknown_targets": ["2"], "unknown_category": ["3"]}
    assert reading.noted["dialogue_kept_as_text"] == ["4"]


def rated(source, a, b, answers=("a 1", "b 2")):
    sides = [conversation("q", answer) for answer in answers]
    return {"conv_A": sides[0], "conv_B": sides[1], "conv_A_rating": a, "conv_B_rating": b, "source": source}


def test_unified_feedback_by_source_without_ties(tmp_path):
    rows = [rated("hh", 1, 2), rated("hh", 2, 1), rated("gpt", 0, 3), rated("gpt", 1, 1), rated("gpt", 1, 2, ("", "x"))]
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "saved")
    for path in (write(tmp_path / "uf.jsonl", rows), tmp_path / "saved"):
        found, reading = results("unified_feedback", path)
        assert {category: row.accuracy.value for category, row in found.items()} == {
            "hh": 0.5,
            "gpt": 1.0,
            "all": pytest.approx(2 / 3),
        }
        assert reading.refused == {"tie": ["4"], "empty": ["5"]}
        assert reading.rows == 5
        assert reading.examples[0].group.source == "hh"


def test_pairs_go_by_category_else_source_and_soft_labels_have_a_side(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "a 2", "rejected": "b 1", "category": "x", "source": "s"},
        {"prompt": "p", "chosen": "a 2", "rejected": "b 2", "source": "s", "soft_label": None},
        {"prompt": "r", "chosen": "a 2", "rejected": "b 3", "soft_label": 0.2},
        {"prompt": "r", "chosen": "a 2", "rejected": "b 3", "soft_label": 0.5},
        {"prompt": "r", "chosen": "a 2", "rejected": "a 2"},
    ]
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    benchmark = PairFile("mine")
    found = evaluate(NUMBER, benchmark, benchmark.read(str(path)))
    assert {row.category: row.accuracy.value for row in found.rows} == {"x": 1, "s": 0.5, "none": 1, "all": 2.5 / 3}
    assert {row.benchmark for row in found.rows} == {"mine"}
    assert found.reading.refused == {"tie": ["4"], "identical": ["5"]}
    assert [(row.row, row.right, row.pairs, row.category) for row in found.kept.rows] == [
        ("1", 1, 1, "x"), ("2", 0.5, 1, "s"), ("3", 1, 1, "none"),
    ]  # fmt: skip
    assert len({row.prompt for row in found.kept.rows}) == 2


@pytest.mark.shared_data
def test_real_defective_rows_are_refused_by_number(shared_data, tmp_path):
    lines = (shared_data / "hh_defects_raw.jsonl").read_text().splitlines()
    good = (shared_data / "hh_raw_sample.jsonl").read_text().splitlines()[:20]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([*lines, *good]) + "\n")
    reading = PairFile().read(str(path))
    reasons = {"identical": "identical", "prompts differ": "prompt_differs", "roles do not alternate": "role_order"}
    reasons["empty response"] = "empty"
    expected = {}
    for number, line in enumerate(lines, 1):
        expected.setdefault(reasons[json.loads(line)["reason"]], []).append(str(number))
    assert {reason: set(rows) for reason, rows in reading.refused.items()} == {
        reason: set(rows) for reason, rows in expected.items()
    }
    assert len(reading.examples) == 20


def test_a_scorer_without_an_opinion_loses_the_row_in_the_open(tmp_path):
    rows = [{"prompt": str(number), "chosen": "a 1", "rejected": "b 0"} for number in range(4)]
    rows[2]["rejected"] = "c nan"
    found, reading = results_of_pairs(write(tmp_path / "pairs.jsonl", rows))
    assert found["all"].n == 3
    assert reading.refused == {"reward_not_finite": ["3"]}
    with pytest.raises(ValueError, match="none of its 4 rows can be used .refused: 4 reward not finite"):
        results_of_pairs(tmp_path / "pairs.jsonl", RuleScorer(lambda _: float("inf")))


def results_of_pairs(path, scorer=NUMBER):
    benchmark = PairFile()
    found = evaluate(scorer, benchmark, benchmark.read(str(path)))
    return {row.category: row for row in found.rows}, found.reading


@pytest.mark.parametrize("name", BENCHMARKS)
def test_wrong_columns_are_one_line(name, tmp_path):
    path = write(tmp_path / "x.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(ValueError, match=r"x.jsonl: row 1 has the columns question, answer, not \w+") as error:
        read_benchmark(f"{name}={path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("rewardbench3=x", "'rewardbench3' is no benchmark; choose from rewardbench, rewardbench2"),
        ("hhh=nowhere", "nowhere: no such file or folder"),
        ("hhh=empty.jsonl", "is empty"),
        ("hhh=folder", "holds no file that ends with"),
        ("hhh=broken.parquet", "cannot be read as parquet"),
        ("hhh=broken.jsonl.gz", "cannot be read as JSON lines"),
    ],
)
def test_what_cannot_be_read_is_one_line(request_, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    for name in ("broken.parquet", "broken.jsonl.gz"):
        (tmp_path / name).write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=message) as error:
        read_benchmark(request_)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_without_a_hub_one_is_told_of_local_copies(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"where there is no hub, give a local copy: {name}=PATH"):
        read_benchmark(name)
