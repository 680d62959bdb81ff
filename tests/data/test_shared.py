"""The shared preference data, and twins of hub data sets, through the whole preparation."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from grmlight.data import GroupLoader, PrepareOptions, prepare
from tests.data.rows import assistant, content_of, user

shared = pytest.mark.shared_data


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))


def lines_of(path):
    return [json.loads(line) for line in content_of(path).splitlines()]


def refused_rows(report):
    return sorted(row for rows in report["refused"].values() for row in rows)


def accounted(found, rows):
    """Every row is used or refused, once, and the report adds up."""
    used = [entry["row"] for entry in found.store.rows()]
    assert sorted([*used, *refused_rows(found.report)]) == list(range(1, rows + 1))
    assert found.report["rows"] == rows == found.report["used"] + len(refused_rows(found.report))
    return used


@shared
def test_hh_train_goes_through_whole(shared_data, byte_tokenizer):
    source = shared_data / "hh_train.jsonl.gz"
    found = prepare(str(source), str(byte_tokenizer), PrepareOptions(max_length=None))
    assert accounted(found, 5102) == list(range(1, 5103))
    lines = lines_of(source)
    assert [entry["id"] for entry in found.store.rows()] == [line["id"] for line in lines]
    decode = AutoTokenizer.from_pretrained(byte_tokenizer).decode
    for batch in GroupLoader(found.store, 100):
        for comparison, row in enumerate(batch.row_C.tolist()):
            for side, response_C in (("chosen", batch.better_C), ("rejected", batch.worse_C)):
                scored = batch.target_L[batch.response_L == response_C[comparison]]
                if row % 50 == 0:
                    assert decode(scored) == lines[row - 1][side] + "<|end|>", row


@shared
def test_hh_train_under_a_limit_accounts_for_every_row(shared_data, byte_tokenizer):
    found = prepare(str(shared_data / "hh_train.jsonl.gz"), str(byte_tokenizer), PrepareOptions(max_length=512))
    used = accounted(found, 5102)
    assert set(found.report["refused"]) == {"over_length"}
    assert found.report["max_tokens"] <= 512
    assert 500 < len(used) < 5102


@shared
def test_raw_transcripts_are_the_converted_pairs(shared_data, byte_tokenizer):
    found = prepare(str(shared_data / "hh_raw_sample.jsonl"), str(byte_tokenizer), PrepareOptions(max_length=None))
    accounted(found, 250)
    decode = AutoTokenizer.from_pretrained(byte_tokenizer).decode
    converted = {(line["chosen"], line["rejected"]) for line in lines_of(shared_data / "hh_train.jsonl.gz")}
    seen = 0
    for batch in GroupLoader(found.store, 1):
        sides = [
            decode(batch.target_L[batch.response_L == index[0]]).removesuffix("<|end|>")
            for index in (batch.better_C, batch.worse_C)
        ]
        seen += tuple(sides) in converted
    assert seen == found.report["used"]


@shared
def test_the_defective_transcripts_are_refused_by_row_and_reason(shared_data, byte_tokenizer, tmp_path):
    lines = lines_of(shared_data / "hh_defects_raw.jsonl")
    good = {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"}
    rows = [good, *({"chosen": line["chosen"], "rejected": line["rejected"]} for line in lines)]
    (tmp_path / "defects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = prepare(str(tmp_path / "defects.jsonl"), str(byte_tokenizer), PrepareOptions(max_length=None))
    assert accounted(found, 60)[0] == 1
    reasons = {row: reason for reason, numbers in found.report["refused"].items() for row in numbers}
    expected = {
        "identical": "identical",
        "prompts_differ": "prompt_differs",
        "roles_do_not_alternate": "role_order",
        "empty_response": "empty",
    }
    for row, line in enumerate(lines, start=2):
        given = line["reason"].replace(" ", "_")
        assert row in reasons, (row, line["reason"])
        assert reasons[row] == expected.get(given, given), (row, line["reason"])


@shared
def test_a_file_of_defects_alone_is_an_error_that_counts_them(shared_data, byte_tokenizer):
    with pytest.raises(ValueError, match=r"hh_defects_raw\.jsonl: none of its 59 rows can be used.*31 identical"):
        prepare(str(shared_data / "hh_defects_raw.jsonl"), str(byte_tokenizer), PrepareOptions())


@shared
def test_system_messages_and_many_turns_go_through(shared_data, byte_tokenizer):
    source = shared_data / "dpo_en_demo.jsonl.gz"
    found = prepare(str(source), str(byte_tokenizer), PrepareOptions(max_length=None))
    accounted(found, 295)
    assert found.report["refused"] == {}
    decode = AutoTokenizer.from_pretrained(byte_tokenizer).decode
    turns = set()
    for batch, line in zip(GroupLoader(found.store, 1), lines_of(source), strict=True):
        prompt = [user(line["prompt"])] if isinstance(line["prompt"], str) else line["prompt"]
        turns.add(len(prompt))
        text = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in prompt)
        whole = decode(batch.input_ids_T[: batch.layout.bounds[2]])
        assert whole == f"{text}<|assistant|>{line['chosen']}<|end|>"
        assert decode(batch.target_L[batch.response_L == 0]) == line["chosen"] + "<|end|>"
    assert max(turns) >= 13
    assert {entry["category"] for entry in found.store.rows()} == {"single_turn", "with_system", "multi_turn"}


@shared
def test_rows_longer_than_the_limit_under_each_policy(shared_data, byte_tokenizer):
    source, tokenizer = str(shared_data / "dpo_en_demo.jsonl.gz"), str(byte_tokenizer)
    whole = prepare(source, tokenizer, PrepareOptions(max_length=None))
    ones = np.ones(1, np.float32)
    packs = [whole.store.pack(np.array([group]), ones) for group in range(295)]
    lengths = [int(np.max(pack["positions_T"])) + 1 for pack in packs]
    long = [row for row, length in enumerate(lengths, start=1) if length > 256]
    dropped = prepare(source, tokenizer, PrepareOptions(max_length=256))
    accounted(dropped, 295)
    assert dropped.report["refused"] == {"over_length": long}
    cut = prepare(source, tokenizer, PrepareOptions(max_length=256, on_overlong="truncate_prompt"))
    used = accounted(cut, 295)
    assert dropped.report["used"] < len(used) < 295
    assert cut.report["max_tokens"] == 256
    assert set(refused_rows(cut.report)) < set(long)
    scored = {row: len(packs[row - 1]["target_L"]) for row in used}
    for batch in GroupLoader(cut.store, 1):
        assert len(batch.target_L) == scored[int(batch.row_C)]
    with pytest.raises(ValueError, match=rf"dpo_en_demo\.jsonl\.gz:{long[0]}: more tokens than max_length"):
        prepare(source, tokenizer, PrepareOptions(max_length=256, on_overlong="raise"))


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def unified(request, tmp_path):
    """A twin of Unified-Feedback: ties, either side better, several sources."""
    rows = [
        {
            "id": f"uf-{index}",
            "conv_A": [user(f"why {index}?"), assistant(f"answer A {index}")],
            "conv_B": [user(f"why {index}?"), assistant(f"answer B {index}")],
            "conv_A_rating": float(index % 5),
            "conv_B_rating": float(index % 3),
            "source": ["openai/summarize_from_feedback", "berkeley-nest/Nectar"][index % 2],
        }
        for index in range(600)
    ]
    return rows, write(tmp_path / f"unified.{request.param}", rows)


@pytest.mark.parametrize("unified", ["parquet", "jsonl"], indirect=True)
@pytest.mark.parametrize("stride", [1, 2, 20, 100])
def test_unified_feedback_columns(unified, stride, byte_tokenizer):
    rows, source = unified
    found = prepare(source, str(byte_tokenizer), PrepareOptions(stride=stride))
    better = [(row["conv_A_rating"], row["conv_B_rating"]) for row in rows]
    ties = [number for number, (a, b) in enumerate(better, start=1) if a == b]
    kept = [number for number, (a, b) in enumerate(better, start=1) if a != b][::stride]
    assert found.report["refused"] == {"tie": ties}
    assert [entry["row"] for entry in found.store.rows()] == kept
    assert found.report["skipped"] == 600 - len(ties) - len(kept)
    decode = AutoTokenizer.from_pretrained(byte_tokenizer).decode
    for entry, batch in zip(found.store.rows(), GroupLoader(found.store, 1), strict=True):
        row = rows[entry["row"] - 1]
        a, b = row["conv_A_rating"], row["conv_B_rating"]
        assert (entry["id"], entry["source"]) == (row["id"], row["source"])
        assert float(batch.margin_C) == abs(a - b)
        best = decode(batch.target_L[batch.response_L == batch.better_C[0]])
        assert best == f"answer {'A' if a > b else 'B'} {entry['row'] - 1}<|end|>"


@pytest.mark.parametrize("unified", ["parquet"], indirect=True)
def test_the_papers_text_of_unified_feedback(unified, byte_tokenizer):
    """The summarize instruction stands before summarization prompts alone."""
    _, source = unified
    tokenizer = str(byte_tokenizer)
    clean, paper = (prepare(source, tokenizer, PrepareOptions(paper_text=value)).store for value in (False, True))
    decode = AutoTokenizer.from_pretrained(byte_tokenizer).decode
    changed = set()
    for entry, left, right in zip(clean.rows(), GroupLoader(clean, 1), GroupLoader(paper, 1), strict=True):
        texts = [decode(batch.input_ids_T[: batch.layout.bounds[1]]) for batch in (left, right)]
        changed.add((entry["source"], texts[0] != texts[1]))
    assert changed == {("openai/summarize_from_feedback", True), ("berkeley-nest/Nectar", False)}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("stride", [2, 20, 100])
def test_preference_700k_columns(kind, stride, byte_tokenizer, tmp_path):
    rows = [
        {
            "chosen": [user(f"why {index}?"), assistant("hm"), user("well?"), assistant(f"so {index}")],
            "rejected": [user(f"why {index}?"), assistant("hm"), user("well?"), assistant("no")],
            "chosen_score": 3.0 + index,
            "rejected_score": 1.0,
        }
        for index in range(300)
    ]
    found = prepare(
        write(tmp_path / f"pref.{kind}", rows), str(byte_tokenizer), PrepareOptions(stride=stride, max_length=3000)
    )
    assert [entry["row"] for entry in found.store.rows()] == list(range(1, 301, stride))
    assert found.report["refused"] == {}
    decode = AutoTokenizer.from_pretrained(byte_tokenizer).decode
    for entry, batch in zip(found.store.rows(), GroupLoader(found.store, 1), strict=True):
        assert decode(batch.target_L[batch.response_L == 0]) == f"so {entry['row'] - 1}<|end|>"
        assert float(batch.margin_C) == 2.0 + entry["row"] - 1
