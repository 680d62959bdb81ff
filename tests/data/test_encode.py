"""Groups of text to packs, in memory: against the store for pairs, and the slow packer for any group."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grmlight._data_rs import read_pairs
from grmlight.data.batch import GroupBatch
from grmlight.data.encode import SUMMARIZE, TextEncoder, TokenGroup, cost, pack, shared_prefix
from grmlight.data.options import PrepareOptions
from grmlight.data.prepare import prepare
from grmlight.data.texts import TextGroup, final_answer
from grmlight.data.tokenizer import load_tokenizer
from tests.reference.packing import pack_groups, shared_prompt

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=4)


def fields_of(batch: GroupBatch) -> dict:
    return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}


def assert_equal_batches(found: GroupBatch, expected: GroupBatch, but=()):
    for name, value in fields_of(expected).items():
        if name in but:
            continue
        if torch.is_tensor(value):
            torch.testing.assert_close(getattr(found, name), value, rtol=0, atol=0, msg=name)
        else:
            assert getattr(found, name) == value, name


@given(st.lists(SEQUENCES, min_size=1, max_size=4), st.data())
def test_packs_are_those_of_the_slow_packer(groups, data):
    starts = [[data.draw(st.integers(0, len(each))) for each in group] for group in groups]
    arrays = [
        TokenGroup(tuple(np.array(each) for each in group), tuple(start))
        for group, start in zip(groups, starts, strict=True)
    ]
    found = pack(arrays)
    assert_equal_batches(found, pack_groups(groups, starts, comparisons=[[] for _ in groups]))
    assert [shared_prefix(group.responses) for group in arrays] == [shared_prompt(group) for group in groups]
    assert sum(map(cost, arrays)) == len(found.input_ids_T)


ROWS = [
    {"prompt": "why is it red", "chosen": "because the cat said so", "rejected": "no"},
    {"prompt": "one \N{SNOWMAN} two", "chosen": "the end", "rejected": "the dog and the dog and the dog"},
    {
        "prompt": [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "a long question about the green house and the dog and the cat"},
            {"role": "assistant", "content": "so"},
            {"role": "user", "content": "and"},
        ],
        "chosen": "the cat",
        "rejected": "it was not",
    },
]
SUMMARY = {
    "conv_A": [{"role": "user", "content": " the post "}, {"role": "assistant", "content": "short"}],
    "conv_B": [{"role": "user", "content": " the post "}, {"role": "assistant", "content": "a longer one"}],
    "conv_A_rating": 2,
    "conv_B_rating": 1,
    "source": "openai/Summarize_from_feedback(comparisons)",
}


def texts_of(row) -> TextGroup:
    if "conv_A" in row:
        return TextGroup((row["conv_A"][0],), (row["conv_A"][1]["content"], row["conv_B"][1]["content"]), row["source"])
    prompt = row["prompt"] if isinstance(row["prompt"], str) else tuple(row["prompt"])
    return TextGroup(prompt, (row["chosen"], row["rejected"]))


@pytest.mark.parametrize(
    "options",
    [
        PrepareOptions(),
        PrepareOptions(paper_text=True, paper_mask=True),
        PrepareOptions(max_length=40, on_overlong="truncate_prompt"),
        PrepareOptions(max_length=40, on_overlong="truncate_prompt", paper_text=True),
        PrepareOptions(max_length=40),
    ],
    ids=["default", "paper", "cut", "cut_paper", "drop"],
)
def test_pairs_become_what_a_store_makes_of_them(options, byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    rows = [*ROWS, SUMMARY]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = prepare(str(tmp_path / "pairs.jsonl"), str(byte_tokenizer), options).store
    encoder = TextEncoder(load_tokenizer(str(byte_tokenizer)), options)
    encoded = list(encoder.encode([texts_of(row) for row in rows]))
    kept = [each for each in encoded if isinstance(each, TokenGroup)]
    arrays = store.pack(np.arange(len(store)), np.ones(len(store), np.float32))
    comparisons = ("better_C", "worse_C", "group_C", "label_C", "margin_C", "weight_C", "row_C", "paired", "chosen_L")
    assert_equal_batches(pack(kept), GroupBatch.from_arrays(arrays, len(store)), but=comparisons)
    refused = {number + 1: each for number, each in enumerate(encoded) if isinstance(each, str)}
    used = {entry["row"] for entry in store.rows()}
    assert refused.keys() == set(range(1, len(rows) + 1)) - used
    assert set(refused.values()) <= {"over_length"}
    assert bool(refused) == (options.max_length == 40 and options.on_overlong == "drop")
    assert any(each.cut for each in kept) == (options.on_overlong == "truncate_prompt")


def test_the_instruction_is_the_one_of_the_reader():
    pairs = read_pairs(json.dumps(SUMMARY).encode(), {"paper_text": True})
    assert pairs.group(0)[0][0]["content"] == SUMMARIZE + "the post"


def test_a_long_group_is_refused_loudly_where_the_options_say_so(byte_tokenizer):
    encoder = TextEncoder(load_tokenizer(str(byte_tokenizer)), PrepareOptions(max_length=9, on_overlong="raise"))
    with pytest.raises(ValueError, match="group 2 has .* tokens and max_length is 9"):
        list(encoder.encode([TextGroup("a", ("b",)), TextGroup("why is the red house", ("so",))]))
    cut = TextEncoder(load_tokenizer(str(byte_tokenizer)), PrepareOptions(max_length=9, on_overlong="truncate_prompt"))
    # The response alone is longer than that.
    assert list(cut.encode([TextGroup("why", ("red red red red red green green",))])) == ["over_length"]


def test_plain_text_ends_with_the_end_token_and_an_empty_one_is_refused(byte_tokenizer):
    tokenizer = load_tokenizer(str(byte_tokenizer))
    encoder = TextEncoder(tokenizer, PrepareOptions(text_rows="plain"))
    whole, empty = encoder.encode([TextGroup("why ", ("so", "not")), TextGroup("why", ("so", ""))])
    assert {int(tokens[-1]) for tokens in whole.responses} == {tokenizer.eos_token_id}
    assert empty == "empty_response_tokens"


def test_conversations_may_go_different_ways(byte_tokenizer):
    """As in MT-Bench: the assistants' first answers differ too."""
    tokenizer = load_tokenizer(str(byte_tokenizer))
    first = {"role": "user", "content": "why"}

    def rest(answer, last):
        pairs = [("assistant", answer), ("user", "and then"), ("assistant", last)]
        return tuple({"role": role, "content": content} for role, content in pairs)

    group = TextGroup((first,), (rest("it was", "a dog"), rest("no", "a cat")))
    (encoded,) = TextEncoder(tokenizer, PrepareOptions()).encode([group])
    for tokens, start, response in zip(encoded.responses, encoded.starts, group.responses, strict=True):
        expected = tokenizer.apply_chat_template([first, *response], tokenize=False)
        assert tokenizer.decode(tokens) == expected
        assert tokenizer.decode(tokens[start:]) == final_answer(response) + "<|end|>"


def test_a_folder_without_a_tokenizer_is_said(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no tokenizer; copy the tokenizer.json") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)
