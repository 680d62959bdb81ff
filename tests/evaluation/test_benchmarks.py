"""Benchmarks of pairs: their definitions against computations of their own, and every row accounted for."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grmlight.data.texts import final_answer
from grmlight.evaluation.benchmarks import BENCHMARKS, PairFile, read_benchmark
from grmlight.evaluation.evaluate import evaluate
from tests.evaluation.verdicts import NUMBER, RuleScorer, all_rows, results, write


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
