"""Stores and packs against the oracle; truncation, threads, and damage."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import grmlight
from grmlight._data_rs import DataError, Preparation, Store
from grmlight.data.batch import GroupBatch
from tests.data import oracle_store
from tests.data.rows import (
    agree,
    as_callback,
    assistant,
    begin,
    byte_level,
    content_of,
    lines,
    render_all,
    split_by_regex,
    system,
    unigram,
    user,
    write_store,
)

WORDS = "the cat sat on the mat and the dog said: why is the red house so green? Ümläut 日本語 😀 \n\n no yes".split(
    " "
)
FILES = ["comparisons.bin", "groups.bin", "rows.jsonl", "segments.bin", "starts.bin", "tokens.bin"]


def sentence(random, words):
    return " ".join(random.choice(WORDS, words))


def make_rows(count, seed=0):
    """Pairs and rankings of all formats, with templates that refuse, equal tokens, sources, margins and labels."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        prompt, chosen, rejected = (sentence(random, random.integers(1, 12)) for _ in range(3))
        turns = [system("be good"), user("hi"), assistant("hello"), user(prompt)][number % 2 * 3 :]
        rows += [
            {
                "prompt": prompt,
                "chosen": chosen,
                "rejected": chosen + rejected,
                "margin": number / 7,
                "id": f"é{number}",
            },
            {"prompt": turns, "chosen": chosen, "rejected": rejected, "weight": 0.5, "soft_label": 0.75, "source": "s"},
            {"chosen": prompt + " " + chosen, "rejected": prompt + " " + rejected, "category": "c\n\u2028"},
            {"prompt": [user("refuse this" if number % 5 == 0 else "q")], "chosen": "CAT", "rejected": f"cat{number}"},
            {
                "prompt": prompt if number % 2 else "",
                "responses": ["no", "yes", "the cat", chosen][: 3 + number % 2],
                "ratings": random.integers(0, 3, 3 + number % 2).tolist(),
                "soft_label": (0.25, 1.0)[number % 2],
            },
        ]
    return lines(*rows)


@pytest.fixture(scope="module")
def tokenizers():
    text = [sentence(np.random.default_rng(seed), 50) for seed in range(20)]
    return {"byte_level": byte_level(text), "split": split_by_regex(text), "unigram": unigram(text)}


OPTIONS = [
    {},
    {"add_special_tokens": True, "append_token": 1},
    {"append_token": 5, "max_length": 30},
    {"max_length": 20, "on_overlong": "truncate_prompt"},
    {"max_length": 12, "on_overlong": "truncate_prompt", "add_special_tokens": True},
]


def compare(directory, written, report):
    """A store must be the oracle's, byte by byte, and so must its packs."""
    assert report == written.report
    for name, content in written.files().items():
        assert (directory / name).read_bytes() == content, name
    store = Store(str(directory))
    names = ("row", "id", "source", "category", "flipped")
    assert store.rows() == [{name: getattr(group.pair, name) for name in names} for group in written.groups]
    assert store.costs.tolist() == [
        group.shared + sum(len(ids) - group.shared for ids in group.responses) for group in written.groups
    ]
    order = np.random.default_rng(0).permutation(len(store))
    for groups in (order[:1], order[:3], order) if len(order) else ():
        compare_pack(store, written, groups)


def compare_pack(store, written, groups):
    counts = (groups % 2).astype(np.float32)
    arrays = store.pack(groups, counts)
    expected = oracle_store.pack([written.groups[group] for group in groups], counts.tolist())
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype, name
        np.testing.assert_array_equal(arrays[name], array, name)
    batch = GroupBatch.from_arrays(arrays, groups_in_step=len(groups))
    assert batch.groups == len(groups)


@pytest.mark.parametrize("name", ["byte_level", "split", "unigram"])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_store_is_the_oracles(tmp_path, tokenizers, name, options):
    tokenizer = tokenizers[name]
    on_tie = "keep" if options else "drop"
    reading_options = {"flip": 0.3, "flip_seed": 2, "on_duplicate": "drop", "on_tie": on_tie}
    pairs, reading = agree(make_rows(40), **reading_options)
    report = write_store(tmp_path / "store", make_rows(40), tokenizer, window=17, **options, **reading_options)
    texts, boundaries = render_all(pairs)
    compare(tmp_path / "store", oracle_store.write(reading, tokenizer, texts, boundaries, **options), report)
    assert report["used"] > 20
    assert report["comparisons"] > report["used"]
    assert bool(report["ties"]) == (on_tie == "keep")
    assert report["refused"]["template"]
    if "on_overlong" in options:
        assert report["refused"]["over_length"]
        assert report["max_tokens"] == options["max_length"]


def test_tokens_tell_what_text_does_not(tmp_path, tokenizers):
    rows = [
        {"prompt": [user("q")], "chosen": "CAT", "rejected": "cat"},
        {"prompt": "a b", "chosen": "c", "rejected": "d"},
    ]
    report = write_store(tmp_path / "store", lines(*rows), tokenizers["unigram"])
    assert report["refused"] == {"identical": [1]}
    late = begin(tmp_path / "late", lines(*rows), tokenizers["byte_level"], offset=1)
    while late.advance(lambda *_: (["a bc", "a bd"], [4, 4])):
        pass
    report = json.loads(late.finish({}))
    assert report["refused"] == {"empty_response_tokens": [2]}
    assert report["skipped"] == 1


def test_a_cut_prompt_can_make_responses_equal(tmp_path, tokenizers):
    tokenizer = tokenizers["byte_level"]
    data = lines({"prompt": "p", "chosen": "a", "rejected": "b"})
    _, reading = agree(data)
    texts, boundaries = ["x0123456789yz", "w0123456789yz"], [12, 12]
    options = {"max_length": 4, "on_overlong": "truncate_prompt"}
    preparation = begin(tmp_path / "store", data, tokenizer, **options)
    while preparation.advance(lambda *_: (texts, boundaries)):
        pass
    report = json.loads(preparation.finish({}))
    assert report["refused"] == {"identical_after_truncation": [1]}
    assert report == oracle_store.write(reading, tokenizer, [texts], [boundaries], **options).report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_length": 3, "on_overlong": "raise"},
            "f:1: more tokens than max_length; raise max_length or use on_overlong",
        ),
        ({"on_bad_row": "raise"}, r"f:1: the chat template refused .* \(no!\); fix the row or use on_bad_row=drop"),
    ],
)
def test_asked_to_stop_it_names_row_and_way_out(tmp_path, tokenizers, options, message):
    data = lines({"prompt": "a b c", "chosen": "d", "rejected": "e"})
    preparation = begin(tmp_path / "store", data, tokenizers["byte_level"], name="f", **options)
    with pytest.raises(DataError, match=message):
        preparation.advance(lambda *_: "no!" if "on_bad_row" in options else (["a b c d", "a b c e"], [0, 0]))
    with pytest.raises(DataError, match="was interrupted"):
        preparation.advance(as_callback)
    preparation.discard()
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_named(tmp_path, tokenizers):
    text = tokenizers["byte_level"].to_str()
    data = lines({"prompt": "p", "chosen": "a", "rejected": "b"})
    for found, message in [((["a", "b"], [0]), "a boundary for each"), ((["a"], [0]), "1 texts for 2 responses")]:
        preparation = begin(tmp_path / "store", data, tokenizers["byte_level"])
        with pytest.raises(ValueError, match=message):
            preparation.advance(lambda *_, found=found: found)
        preparation.close()
    preparation = begin(tmp_path / "store", data, tokenizers["byte_level"])
    with pytest.raises(DataError, match="manifest entry report is the store's own"):
        preparation.finish({"report": 1})
    with pytest.raises(DataError, match="has ended"):
        preparation.finish({})
    for tokenizer, given_settings, message in [
        ("{}", {}, "tokenizer: "),
        (text, {"write": {"max_len": 3}}, "unknown field `max_len`"),
        (text, {"windows": 3}, "unknown field `windows`"),
        (text, {"read": {"stride": 0}}, "stride must be at least 1"),
    ]:
        with pytest.raises(DataError, match=message):
            Preparation.begin(data, tmp_path / "store", "test", tokenizer, given_settings)
    with pytest.raises(FileNotFoundError, match=r"none\.json: cannot be read"):
        Preparation.begin(data, tmp_path / "store", "test", str(tmp_path / "none.json"), {})
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_is_a_text_or_a_path_and_never_truncates(tmp_path, tokenizers):
    tokenizer = type(tokenizers["byte_level"]).from_str(tokenizers["byte_level"].to_str())
    pairs, reading = agree(make_rows(3))
    written = oracle_store.write(reading, tokenizer, *render_all(pairs))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    preparation = Preparation.begin(
        lambda: make_rows(3), str(tmp_path / "store"), "x", str(tmp_path / "tokenizer.json"), {}
    )
    while preparation.advance(as_callback):
        pass
    compare(tmp_path / "store", written, json.loads(preparation.finish({})))


BARE = """
import pathlib, sys, types
# The package without its imports, which take seconds.
package = types.ModuleType("grmlight")
package.__path__ = [sys.argv.pop(1)]
sys.modules["grmlight"] = package
"""

SCRIPT = """
from tokenizers import Tokenizer
from tests.data.rows import write_store
source, tokenizer, target, window = sys.argv[1:]
write_store(pathlib.Path(target), source, Tokenizer.from_file(tokenizer), int(window), flip=0.5)
"""


def bare_python(script):
    return [sys.executable, "-c", BARE + script, grmlight.__path__[0]]


def test_threads_and_windows_do_not_change_a_byte(tmp_path, tokenizers):
    (tmp_path / "rows.jsonl").write_bytes(make_rows(100))
    tokenizers["byte_level"].save(str(tmp_path / "tokenizer.json"))
    contents = []
    for threads, window in [("1", "7"), ("4", "1000")]:
        target = tmp_path / f"store{threads}"
        arguments = [str(tmp_path / "rows.jsonl"), str(tmp_path / "tokenizer.json"), str(target), window]
        environment = os.environ | {"RAYON_NUM_THREADS": threads}
        subprocess.run([*bare_python(SCRIPT), *arguments], env=environment, check=True, timeout=120)
        contents.append({path.name: path.read_bytes() for path in target.iterdir()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == sorted([*FILES, "manifest.json"])


@pytest.fixture
def stored(tmp_path, tokenizers):
    write_store(tmp_path / "store", make_rows(5), tokenizers["byte_level"])
    return tmp_path / "store"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flip", "grow", "remove", "empty"])
def test_a_damaged_file_is_named(stored, name, damage):
    content = (stored / name).read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut": content[:-1],
        "flip": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
        "grow": content + b"\0",
        "empty": b"",
    }
    if damage == "remove":
        (stored / name).unlink()
    else:
        (stored / name).write_bytes(damaged[damage])
    with pytest.raises(DataError, match=rf"store/{name}: (is missing|is cut off|was changed).*prepare it again"):
        Store(str(stored))


@pytest.mark.parametrize(
    ("old", "new"), [('"schema":1', '"schema":2'), ('"schema":1', '"schema":"1"'), ("{", ""), ("tokens.bin", "x.bin")]
)
def test_a_wrong_manifest_is_named(stored, old, new):
    path = stored / "manifest.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=r"manifest\.json: "):
        Store(str(stored))


def test_a_folder_without_a_store(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json: cannot be read"):
        Store(str(tmp_path / "none"))


def test_packs_of_nothing_and_of_what_is_not_there(stored):
    store = Store(str(stored))
    assert json.loads(store.manifest)["identity"] == "test"
    empty = store.pack(np.array([], np.int64), np.array([], np.float32))
    assert empty["bounds"].tolist() == [0]
    for groups, counts in [([len(store)], [1]), ([-1], [1]), ([0], [])]:
        with pytest.raises(DataError):
            store.pack(np.array(groups), np.array(counts, np.float32))
    strided = np.arange(len(store))[::2]
    assert store.pack(strided, np.ones(len(strided), np.float32))["count_G"].sum() == len(strided)


def test_a_store_that_is_there_stays(stored, tokenizers):
    before = {path: path.read_bytes() for path in stored.iterdir()}
    for rows, identity in [(5, "test"), (6, "other")]:
        assert begin(stored, make_rows(rows), tokenizers["byte_level"], identity=identity) is None
    assert {path: path.read_bytes() for path in stored.iterdir()} == before
    assert [path.name for path in stored.parent.iterdir()] == ["store"]


def test_a_place_that_is_taken(tmp_path, tokenizers):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="exists and is no store"):
        begin(tmp_path / "store", make_rows(1), tokenizers["byte_level"])
    assert (tmp_path / "store" / "letter.txt").read_text() == "dear"
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_place_that_is_taken_meanwhile(tmp_path, tokenizers):
    preparation = begin(tmp_path / "store", make_rows(1), tokenizers["byte_level"])
    while preparation.advance(as_callback):
        pass
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="exists and is no store"):
        preparation.finish({})
    (tmp_path / "store" / "letter.txt").unlink()
    # It was whole: it only has to be moved.
    assert begin(tmp_path / "store", make_rows(1), tokenizers["byte_level"]) is None
    assert len(Store(str(tmp_path / "store"))) > 0
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == sorted([*FILES, "manifest.json"])
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


STRANGE = st.text(st.sampled_from(list("aZ1 9\t\n\r'.,<|>éß\u0301\u200d\u00a0\u3000日本😀👩ﬁ\0")), max_size=30)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=STRANGE, chosen=STRANGE, rejected=STRANGE, name=st.sampled_from(["byte_level", "split", "unigram"]))
def test_any_text_is_encoded_like_in_python(tmp_path, tokenizers, prompt, chosen, rejected, name):
    data = lines({"prompt": prompt, "chosen": "a" + chosen, "rejected": "b" + rejected})
    pairs, reading = agree(data)
    target = tmp_path / hashlib.sha256(data + name.encode()).hexdigest()
    report = write_store(target, data, tokenizers[name], append_token=5)
    written = oracle_store.write(reading, tokenizers[name], *render_all(pairs), append_token=5)
    compare(target, written, report)


@pytest.mark.shared_data
def test_shared_files_go_through_whole(tmp_path, shared_data):
    chats = ["hh_train.jsonl.gz", "dpo_en_demo.jsonl.gz", "hh_raw_sample.jsonl"]
    tokenizer = byte_level([content_of(shared_data / name)[:300_000].decode(errors="ignore") for name in chats], 2000)
    for name in [*chats, "humanevalpack_a.jsonl.gz", "truthfulqa_test.jsonl.gz"]:
        options = {"max_length": 300, "on_overlong": "truncate_prompt" if name in chats else "drop"}
        pairs, reading = agree(str(shared_data / name), content_of(shared_data / name), flip=0.25)
        report = write_store(tmp_path / name, str(shared_data / name), tokenizer, flip=0.25, **options)
        texts, boundaries = render_all(pairs)
        compare(tmp_path / name, oracle_store.write(reading, tokenizer, texts, boundaries, **options), report)
        assert report["rows"] == report["used"] + sum(map(len, report["refused"].values()))
