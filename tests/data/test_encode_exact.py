"""The ids of both engines, whole and with the prompt encoded once, against the Python package that defines them."""

from __future__ import annotations

import itertools
import json
import multiprocessing

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from grmlight._data_rs import DataError, Encoder
from tests.data.encode_texts import FAMILIES, SPECIAL, family, fuzzed_texts, real_texts

CHUNK = 20_000
ELSEWHERE = 1_000_000
"""A place in the data at which next to nothing is checked on the go."""


@pytest.fixture(scope="module")
def trained() -> dict[str, str]:
    """The tokenizer.json of each family: a tokenizer just trained has other scores than those it is saved with."""
    text = real_texts(2000) + fuzzed_texts(1000, seed=5)
    return {name: family(name, text).to_str() for name in FAMILIES}


def assert_same_ids(found: Encoder, tokenizer: Tokenizer, texts: list[str]) -> None:
    """Encoded whole, without what the post-processor adds."""
    ids, ends = found.encode(texts)
    expected = [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    flat = np.fromiter(itertools.chain.from_iterable(expected), np.uint32)
    if np.array_equal(ids, flat) and np.array_equal(ends, np.cumsum([len(each) for each in expected])):
        return
    parts = np.split(ids, ends[:-1])
    wrong = [text for text, part, each in zip(texts, parts, expected, strict=True) if part.tolist() != each]
    pytest.fail(f"{len(wrong)} of {len(texts)} texts differ, the first: {wrong[0]!r}")


def groups_of(texts: list[str], special: str) -> tuple[list[list[str]], list[list[int]]]:
    """Two conversations that begin alike; the response begins behind a special token, somewhere, or at an end."""
    groups, boundaries = [], []
    for number, (prompt, left, right) in enumerate(zip(texts[::3], texts[1::3], texts[2::3], strict=False)):
        head = prompt + special
        groups.append([head + left, head + right])
        places = [len(head), len(head) + min(len(left), len(right)) // 2, len(prompt) // 2, 0, len(head + left)]
        boundaries.append([places[number % 7 if number % 7 < len(places) else 0]] * 2)
    return groups, boundaries


def expected_group(tokenizer: Tokenizer, texts: list[str], boundaries: list[int], add_special: bool):
    responses = []
    for text, boundary in zip(texts, boundaries, strict=True):
        encoding = tokenizer.encode(text, add_special_tokens=add_special)
        start = next((place for place, (_, end) in enumerate(encoding.offsets) if end > boundary), None)
        if start is None:
            return "empty_response_tokens"
        responses.append((encoding.ids, start))
    return "identical" if responses[0][0] == responses[1][0] else responses


def assert_same_groups(found: Encoder, tokenizer: Tokenizer, texts: list[str], add_special: bool) -> None:
    groups, boundaries = groups_of(texts, SPECIAL[len(texts) % len(SPECIAL)])
    for group, at, encoded in zip(groups, boundaries, found.encode_groups(groups, boundaries, ELSEWHERE), strict=True):
        expected = expected_group(tokenizer, group, at, add_special)
        if isinstance(encoded, str) or isinstance(expected, str):
            assert encoded == expected, (group, at)
            continue
        assert [(tokens.tolist(), start) for tokens, start in encoded[1]] == expected, (group, at)


@pytest.mark.parametrize("name", FAMILIES)
def test_engines_agree(trained, name):
    """20,000 real texts and as many fuzzed ones, of which each family takes its part of the groups."""
    tokenizer, found = Tokenizer.from_str(trained[name]), Encoder(trained[name], {})
    assert (found.engine, found.prompt_once) == (
        "tokenizers 0.23" if name == "wordpiece" else "tokenizers 1.0",
        name not in {"wordpiece", "unigram"},
    )
    for texts in (real_texts(20_000), fuzzed_texts(20_000, seed=0)):
        assert_same_ids(found, tokenizer, texts)
        assert_same_groups(found, tokenizer, texts[-2400:], add_special=False)
        assert_same_groups(
            Encoder(trained[name], {"add_special_tokens": True}), tokenizer, texts[:600], add_special=True
        )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FAMILIES)
def test_engines_agree_on_more(trained, name):
    """200,000 real texts and 1,000,000 fuzzed ones, a tenth of them in groups."""
    tokenizer, found = Tokenizer.from_str(trained[name]), Encoder(trained[name], {})
    real = real_texts(200_000)
    assert len(real) == 200_000
    chunks = [real[start : start + CHUNK] for start in range(0, len(real), CHUNK)]
    for number, texts in enumerate(itertools.chain(chunks, (fuzzed_texts(CHUNK, seed) for seed in range(1, 51)))):
        assert_same_ids(found, tokenizer, texts)
        assert_same_groups(found, tokenizer, texts[number::10], add_special=False)


def test_threads_and_chunks_change_nothing(trained):
    texts = real_texts(900)
    groups, boundaries = groups_of(texts, "<|im_end|>")
    whole = Encoder(trained["llama3"], {"threads": 1}).encode_groups(groups, boundaries, 0)
    several = Encoder(trained["llama3"], {"threads": 3})
    parts = [several.encode_groups(groups[at : at + 7], boundaries[at : at + 7], at) for at in range(0, len(groups), 7)]
    assert_equal_groups(list(itertools.chain.from_iterable(parts)), whole)
    assert_equal_groups(Encoder(trained["llama3"], {"engine": "reference"}).encode_groups(groups, boundaries, 0), whole)


def assert_equal_groups(found: list, expected: list) -> None:
    def plain(groups: list) -> list:
        return [
            each if isinstance(each, str) else (each[0], [(tokens.tolist(), start) for tokens, start in each[1]])
            for each in groups
        ]

    assert plain(found) == plain(expected)


def test_a_forked_child_needs_no_threads(trained):
    found = Encoder(trained["gpt2"], {"threads": 2})
    expected = found.encode(["one", "two three"])[0].tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(found.encode(["one", "two three"])[0].tolist()), daemon=True)
    child.start()
    assert queue.get(timeout=30) == expected
    child.join(timeout=30)
    assert child.exitcode == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer.add_tokens([AddedToken("<x>", normalized=True)]),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("<x>", normalized=False, lstrip=True)]),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("<x>", normalized=False, rstrip=True)]),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("<x>", normalized=False, single_word=True)]),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme="first")),
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Prepend("\u2581")),
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Strip()),
    ],
    ids=["normalized", "lstrip", "rstrip", "single_word", "first", "prepend", "strip"],
)
def test_what_looks_beyond_a_cut_is_encoded_whole(trained, change):
    tokenizer = Tokenizer.from_str(trained["metaspace"])
    change(tokenizer)
    found = Encoder(tokenizer.to_str(), {})
    assert not found.prompt_once
    texts = [text + "<x>" + text[:3] for text in fuzzed_texts(600, seed=3)]
    assert_same_ids(found, tokenizer, texts)
    assert_same_groups(found, tokenizer, texts, add_special=False)


def test_the_reference_is_taken_for_what_the_fast_engine_does_not_know(trained):
    content = json.loads(trained["llama3"])
    content["model"]["dropout"] = 0.1
    found = Encoder(json.dumps(content), {})
    assert found.engine == "tokenizers 0.23"
    assert "dropout" in found.why_reference
    with pytest.raises(DataError, match="threads must be at least 1"):
        Encoder(json.dumps(content), {"threads": 0})
