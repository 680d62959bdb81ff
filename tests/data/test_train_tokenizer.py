"""Tokenizers that are trained on the pairs themselves."""

import gzip
import json

import pytest
from transformers import AutoTokenizer

from grmlight.data import GroupLoader, PrepareOptions, prepare
from grmlight.data.train_tokenizer import trained_tokenizer
from tests.data.rows import assistant, system, user

ROWS = [
    {"prompt": [system("be kind"), user("why is it so?")], "chosen": [assistant("because")], "rejected": "no"},
    *({"prompt": f"tell me {i}", "chosen": f"the answer is {i}", "rejected": "leave me alone"} for i in range(30)),
]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    return str(path)


@pytest.mark.parametrize("size", ["", "many", "299", "-400", "4e3", "²", " 400"])
def test_a_bad_size_is_said_and_nothing_is_written(size, pairs, tmp_path):
    with pytest.raises(ValueError, match=r"write train:SIZE with a SIZE of at least 300, as in train:4096"):
        trained_tokenizer(f"train:{size}", pairs, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_other_names_stay_as_they_are(tmp_path):
    for name in ("google/gemma-2b-it", "package:grmlight.lab/assets/lm", ""):
        assert trained_tokenizer(name, "nothing", tmp_path / "cache") == name
    assert not (tmp_path / "cache").exists()


def test_it_is_trained_once_for_a_content_and_a_size(pairs, tmp_path):
    cache = tmp_path / "cache"
    first = trained_tokenizer("train:300", pairs, cache)
    stamps = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert trained_tokenizer("train:300", pairs, cache) == first
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == stamps
    assert trained_tokenizer("train:320", pairs, cache) != first
    assert len(list(cache.iterdir())) == 2


def test_any_text_comes_back_and_the_words_of_the_pairs_are_short(pairs, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(trained_tokenizer("train:340", pairs, tmp_path / "cache"))
    assert len(tokenizer) <= 340
    for text in ("the answer is 7", "never seen: Łódź 🙂\n\t ok"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert len(tokenizer(" answer")["input_ids"]) < len(tokenizer(" unseen")["input_ids"])
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_pairs_are_prepared_with_it_system_role_and_all(pairs, tmp_path):
    tokenizer = trained_tokenizer("train:340", pairs, tmp_path / "cache")
    found = prepare(pairs, tokenizer, PrepareOptions(), tmp_path / "store")
    assert (found.report["used"], found.report["refused"]) == (31, {})
    batch = next(iter(GroupLoader(found.store, 1)))
    decode = AutoTokenizer.from_pretrained(tokenizer).decode
    start, end = batch.layout.bounds[:2]
    assert decode(batch.input_ids_T[start:end]) == (
        "<|system|>be kind<|end|><|user|>why is it so?<|end|><|assistant|>"
    )  # fmt: skip
    assert decode(batch.target_L[batch.response_L == 0]) == "because<|end|>"


def test_a_killed_training_is_swept_by_the_next(pairs, tmp_path):
    stale = tmp_path / "cache" / ".grmlight-tmp-999999999-x"
    stale.mkdir(parents=True)
    (stale / "tokenizer.json").write_text("half")
    trained_tokenizer("train:300", pairs, tmp_path / "cache")
    assert not stale.exists()


def test_nothing_to_train_on_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"train:300.*data\.init_args\.train"):
        trained_tokenizer("train:300", "", tmp_path / "cache")
