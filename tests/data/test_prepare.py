"""From a source to a store: reuse, refusals, subsets, noise, and how text becomes tokens."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from grmlight.data import GroupLoader, PrepareOptions, prepare
from tests.data.rows import assistant, user

prepare_module = sys.modules["grmlight.data.prepare"]

ROWS = [{"prompt": f"why {i}?", "chosen": f"so {i}", "rejected": f"not {i}"} for i in range(60)]
CHAT = {
    "prompt": [user("hi"), assistant("yes?"), user("why")],
    "chosen": [assistant("so it is")],
    "rejected": [assistant("not so")],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stores"


@pytest.fixture
def pairs(tmp_path):
    return write(tmp_path / "pairs.jsonl", ROWS)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def arrays(store):
    everything = np.arange(len(store), dtype=np.int64)
    return store.pack(everything, np.ones(len(store), np.float32))


def same(left, right):
    return all(np.array_equal(arrays(left)[name], array) for name, array in arrays(right).items())


def texts(store, tokenizer, side="better_C"):
    """The scored text of each pair's one side."""
    (batch,) = GroupLoader(store, len(store))
    decode = AutoTokenizer.from_pretrained(tokenizer).decode
    return [decode(batch.target_L[batch.response_L == index]) for index in getattr(batch, side)]


def test_equal_content_is_prepared_once(pairs, byte_tokenizer, tmp_path, cache):
    first = prepare(pairs, str(byte_tokenizer), PrepareOptions())
    stamps = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    copy = tmp_path / "elsewhere" / "pairs.jsonl"
    copy.parent.mkdir()
    copy.write_text(Path(pairs).read_text())
    second = prepare(str(copy), str(byte_tokenizer), PrepareOptions())
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == stamps
    assert first.report == second.report
    assert (first.report["rows"], first.report["used"]) == (60, 60)


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 900},
        {"on_overlong": "raise"},
        {"on_bad_row": "raise"},
        {"on_duplicate": "drop"},
        {"on_contradiction": "drop"},
        {"on_tie": "keep"},
        {"stride": 2},
        {"offset": 1},
        {"limit": 5},
        {"flip": 0.5},
        {"flip_seed": 1},
        {"text_rows": "plain"},
        {"paper_text": True},
        {"paper_mask": True},
    ],
    ids=str,
)
def test_every_option_makes_another_store(options, pairs, byte_tokenizer, cache):
    prepare(pairs, str(byte_tokenizer), PrepareOptions())
    prepare(pairs, str(byte_tokenizer), PrepareOptions(**options))
    assert len(list(cache.iterdir())) == 2


def test_another_file_tokenizer_or_template_makes_another_store(pairs, byte_tokenizer, tmp_path, cache):
    prepare(pairs, str(byte_tokenizer), PrepareOptions())
    prepare(write(tmp_path / "pairs.jsonl", ROWS[:-1]), str(byte_tokenizer), PrepareOptions())
    assert len(list(cache.iterdir())) == 2
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    prepare(pairs, str(tmp_path / "tokenizer"), PrepareOptions())
    assert len(list(cache.iterdir())) == 3
    template = tmp_path / "template.jinja"
    for count, text in ((4, "{% for m in messages %}{{ m.content }}|{% endfor %}"), (5, "{{ messages }}")):
        template.write_text(text)
        prepare(pairs, str(byte_tokenizer), PrepareOptions(chat_template=str(template)))
        assert len(list(cache.iterdir())) == count


def test_a_folder_with_another_store_is_refused_by_name(pairs, byte_tokenizer, tmp_path):
    folder = tmp_path / "store"
    prepare(pairs, str(byte_tokenizer), PrepareOptions(), folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"store: holds a store of other data, tokenizer or options; remove it"):
        prepare(pairs, str(byte_tokenizer), PrepareOptions(stride=2), folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert len(prepare(pairs, str(byte_tokenizer), PrepareOptions(), folder).store) == 60


def test_a_folder_with_something_else_is_left_alone(pairs, byte_tokenizer, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="mine"):
        prepare(pairs, str(byte_tokenizer), PrepareOptions(), folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "pairs.jsonl"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"prompt": "why", "chosen": "so", "rejected": "so"}], {}, r"none of its 1 rows can be used.*identical"),
        (ROWS[:3], {"max_length": 2}, r"none of its 3 rows can be used.*3 over length"),
        (ROWS[:3], {"offset": 3}, r"offset and limit leave none of its 3 rows"),
        ([], {}, r"bad\.jsonl: is empty"),
        (ROWS[:3], {"max_length": 2, "on_overlong": "raise"}, r"bad\.jsonl:1: "),
        ([*ROWS[:2], {"prompt": "p", "chosen": "", "rejected": "x"}], {"on_bad_row": "raise"}, r"bad\.jsonl:3: "),
        ([{"question": "why", "answer": "so"}], {}, "question"),
    ],
    ids=["nothing usable", "all too long", "all left out", "empty", "raise overlong", "raise bad row", "columns"],
)
def test_what_cannot_be_prepared_is_said_and_leaves_nothing(rows, options, message, byte_tokenizer, tmp_path, cache):
    source = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(ValueError, match=message) as caught:
        prepare(source, str(byte_tokenizer), PrepareOptions(**options))
    said = str(caught.value)
    assert "bad.jsonl" in said
    assert "\n" not in said
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"offset": -1}, "offset must be at least 0, got -1"),
        ({"flip": 1.5}, "flip is a fraction between 0 and 1, got 1.5"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PrepareOptions(**options)


def rows_of(found):
    return [entry["row"] for entry in found.store.rows()]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"stride": 20}, [1, 21, 41]),
        ({"limit": 3}, [1, 2, 3]),
        ({"offset": 57}, [58, 59, 60]),
        ({"stride": 10, "offset": 2, "limit": 3}, [21, 31, 41]),
        ({"offset": 58, "limit": 100}, [59, 60]),
    ],
    ids=str,
)
def test_subsets_are_taken_in_order_and_every_row_is_accounted_for(options, rows, pairs, byte_tokenizer):
    found = prepare(pairs, str(byte_tokenizer), PrepareOptions(**options))
    assert rows_of(found) == rows
    assert found.report["rows"] == 60 == found.report["used"] + found.report["skipped"]
    stored = json.loads(json.loads(found.store.manifest)["options"])
    assert {name: stored[name] for name in options} == options


def test_the_stride_counts_usable_rows_alone(byte_tokenizer, tmp_path):
    bad = {"prompt": "p", "chosen": "x", "rejected": "x"}
    source = write(tmp_path / "pairs.jsonl", [bad, ROWS[0], ROWS[1], bad, ROWS[2]])
    found = prepare(source, str(byte_tokenizer), PrepareOptions(stride=2))
    assert rows_of(found) == [2, 5]
    assert found.report["refused"] == {"identical": [1, 4]}


def test_flips_are_seeded_and_stored_and_swap_the_sides(pairs, byte_tokenizer):
    def flips(**options):
        store = prepare(pairs, str(byte_tokenizer), PrepareOptions(**options)).store
        return store, {entry["row"] for entry in store.rows() if entry["flipped"]}

    plain, none = flips()
    store, flipped = flips(flip=0.25)
    assert none == set()
    assert 5 <= len(flipped) <= 26
    assert prepare(pairs, str(byte_tokenizer), PrepareOptions(flip=0.25)).report["flipped"] == len(flipped)
    for row, (before, after, other) in enumerate(
        zip(
            texts(plain, byte_tokenizer),
            texts(store, byte_tokenizer),
            texts(plain, byte_tokenizer, "worse_C"),
            strict=True,
        ),
        start=1,
    ):
        assert after == (other if row in flipped else before)
    assert flips(flip=0.25, flip_seed=1)[1] != flipped
    assert flips(flip=0.25, stride=3)[1] == flipped & set(range(1, 61, 3))
    assert flips(flip=0.25, limit=30)[1] == flipped & set(range(1, 31))
    assert len(flips(flip=1.0)[1]) == 60


def test_any_kind_of_source_gives_the_same_tokens(pairs, byte_tokenizer, tmp_path):
    rows = [row | {"margin": 0.5} for row in ROWS] + [{"prompt": "é 🙂 \u2028", "chosen": "ñ", "rejected": "n"}]
    lines = prepare(write(tmp_path / "pairs.jsonl", rows), str(byte_tokenizer), PrepareOptions())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "disk")
    for source in ("pairs.parquet", "disk"):
        found = prepare(str(tmp_path / source), str(byte_tokenizer), PrepareOptions())
        assert found.report == lines.report
        assert same(found.store, lines.store)


def test_messages_from_parquet_give_the_same_tokens(byte_tokenizer, tmp_path):
    rows = [CHAT, CHAT | {"chosen": [assistant("because")]}]
    lines = prepare(write(tmp_path / "pairs.jsonl", rows), str(byte_tokenizer), PrepareOptions())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    assert same(prepare(str(tmp_path / "pairs.parquet"), str(byte_tokenizer), PrepareOptions()).store, lines.store)


@pytest.fixture
def with_bos(byte_tokenizer, tmp_path):
    """A tokenizer that adds a BOS, and whose template writes one too, as Gemma's and Mistral's do."""
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "with_bos")
    return str(tmp_path / "with_bos"), tokenizer.bos_token_id


def leading(store, token):
    ids = store.pack(np.array([0]), np.ones(1, np.float32))["input_ids_T"].tolist()
    return next(index for index, each in enumerate(ids) if each != token)


def test_paper_text_doubles_the_bos(pairs, with_bos):
    tokenizer, bos = with_bos
    assert leading(prepare(pairs, tokenizer, PrepareOptions()).store, bos) == 1
    assert leading(prepare(pairs, tokenizer, PrepareOptions(paper_text=True)).store, bos) == 2


def test_plain_text_gets_the_tokenizers_own_bos_and_an_end(pairs, with_bos):
    tokenizer, bos = with_bos
    found = prepare(pairs, tokenizer, PrepareOptions(text_rows="plain"))
    assert leading(found.store, bos) == 1
    assert texts(found.store, tokenizer)[3] == "so 3<|end|>"


def test_only_the_scored_response_is_in_the_mask_unless_the_papers_is_asked_for(byte_tokenizer, tmp_path):
    source = write(tmp_path / "chat.jsonl", [CHAT])
    clean = prepare(source, str(byte_tokenizer), PrepareOptions()).store
    paper = prepare(source, str(byte_tokenizer), PrepareOptions(paper_mask=True)).store
    assert texts(clean, byte_tokenizer) == ["so it is<|end|>"]
    later = "yes?<|end|><|user|>why<|end|><|assistant|>"
    assert texts(paper, byte_tokenizer) == [later + "so it is<|end|>"]
    assert texts(paper, byte_tokenizer, "worse_C") == [later + "not so<|end|>"]
    assert np.array_equal(arrays(clean)["input_ids_T"], arrays(paper)["input_ids_T"])


LONG = {"prompt": "word " * 100 + "why", "chosen": "so", "rejected": "no"}


def test_overlong_pairs_are_dropped_by_row(byte_tokenizer, tmp_path):
    source = write(tmp_path / "pairs.jsonl", [ROWS[0], LONG, ROWS[1], LONG])
    found = prepare(source, str(byte_tokenizer), PrepareOptions(max_length=64))
    assert found.report["refused"] == {"over_length": [2, 4]}
    assert rows_of(found) == [1, 3]


def test_overlong_prompts_lose_their_beginning(byte_tokenizer, tmp_path):
    source = write(tmp_path / "pairs.jsonl", [ROWS[0], LONG])
    found = prepare(source, str(byte_tokenizer), PrepareOptions(max_length=64, on_overlong="truncate_prompt"))
    assert found.report["refused"] == {}
    assert found.report["max_tokens"] == 64
    ids = found.store.pack(np.array([1]), np.ones(1, np.float32))["input_ids_T"].tolist()
    text = AutoTokenizer.from_pretrained(byte_tokenizer).decode(ids)
    assert text.startswith("<|user|>")
    assert "word why<|end|><|assistant|>" in text
    assert texts(found.store, byte_tokenizer)[1] == "so<|end|>"


def test_an_overlong_pair_ends_the_preparation_where_asked(byte_tokenizer, tmp_path):
    source = write(tmp_path / "pairs.jsonl", [ROWS[0], LONG])
    with pytest.raises(ValueError, match=r"pairs\.jsonl:2: more tokens than max_length"):
        prepare(source, str(byte_tokenizer), PrepareOptions(max_length=64, on_overlong="raise"))


def test_responses_are_never_cut(byte_tokenizer, tmp_path):
    long = {"prompt": "word " * 100, "chosen": "so " * 100, "rejected": "no"}
    source = write(tmp_path / "pairs.jsonl", [ROWS[0], long])
    found = prepare(source, str(byte_tokenizer), PrepareOptions(max_length=64, on_overlong="truncate_prompt"))
    assert found.report["refused"] == {"over_length": [2]}


def test_what_the_template_refuses_is_counted_with_its_message(byte_tokenizer, tmp_path):
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    system = {"prompt": [{"role": "system", "content": "be kind"}, user("why")], "chosen": "so", "rejected": "no"}
    source = write(tmp_path / "pairs.jsonl", [ROWS[0], system, CHAT, system])
    found = prepare(source, str(byte_tokenizer), PrepareOptions(chat_template=str(template)))
    assert found.report["refused"] == {"template": [2, 4]}
    assert found.report["template_errors"] == {"2": "no system role here", "4": "no system role here"}
    assert rows_of(found) == [1, 3]


def test_rows_keep_their_id_source_and_category(byte_tokenizer, tmp_path):
    source = write(tmp_path / "pairs.jsonl", [ROWS[0] | {"id": "x7", "source": "web", "category": "easy"}, ROWS[1]])
    first, second = prepare(source, str(byte_tokenizer), PrepareOptions()).store.rows()
    assert first == {"row": 1, "id": "x7", "source": "web", "category": "easy", "flipped": False}
    assert second["row"] == 2


def test_another_end_token_makes_another_store(byte_tokenizer, tmp_path, cache):
    """It is no part of tokenizer.json, but plain text ends with it."""
    source = write(tmp_path / "pairs.jsonl", ROWS[:3])
    other = tmp_path / "tokenizer"
    shutil.copytree(byte_tokenizer, other)
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|pad|>"}))
    options = PrepareOptions(text_rows="plain")
    ends = [
        int(arrays(prepare(source, str(folder), options).store)["target_L"][-1]) for folder in (byte_tokenizer, other)
    ]
    assert ends == [1, 0]


def test_a_ranking_shares_its_prompt_once_and_keeps_its_order(byte_tokenizer, tmp_path):
    ranking = {"prompt": "why?", "responses": ["not so", "so", "it was so"], "ratings": [1, 3, 1], "id": "k"}
    source = write(tmp_path / "pairs.jsonl", [ROWS[0], ranking])
    found = prepare(source, str(byte_tokenizer), PrepareOptions(on_tie="keep"))
    assert (found.report["used"], found.report["comparisons"], found.report["ties"]) == (2, 4, 1)
    (batch,) = GroupLoader(found.store, 2)
    assert batch.better_C.tolist() == [0, 3, 2, 3]
    assert batch.worse_C.tolist() == [1, 2, 4, 4]
    assert batch.label_C.tolist() == [1.0, 1.0, 0.5, 1.0]
    assert batch.margin_C.tolist() == [0.0, 2.0, 0.0, 2.0]
    assert not batch.paired
    decode = AutoTokenizer.from_pretrained(byte_tokenizer).decode
    assert [decode(batch.target_L[batch.response_L == n]) for n in (2, 3, 4)] == [
        f"{response}<|end|>" for response in ranking["responses"]
    ]
    prompts = [s for s in batch.layout.prefix if s >= 0]
    assert prompts == [0, 0, 3, 3, 3]
    assert decode(batch.input_ids_T).count("why?") == 1


def test_soft_labels_and_dropped_ties_are_accounted_for(byte_tokenizer, tmp_path):
    rows = [
        ROWS[0] | {"soft_label": 0.5},
        ROWS[1] | {"soft_label": 0.75},
        {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [1, 2, 2]},
        {"prompt": "q", "responses": ["d", "e"], "ranks": [1, 1]},
    ]
    found = prepare(write(tmp_path / "pairs.jsonl", rows), str(byte_tokenizer), PrepareOptions())
    assert found.report["refused"] == {"tie": [4]}
    assert found.report["noted"] == {"tie": [3]}
    assert (found.report["used"], found.report["comparisons"], found.report["ties"]) == (3, 4, 1)
    assert arrays(found.store)["label_C"].tolist() == [0.5, 0.75, 1.0, 1.0]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_store_is_the_same_whoever_renders_and_encodes(byte_tokenizer, tmp_path, monkeypatch, capsys):
    """Transformers and the tokenizers package, or the extension."""
    system = {"prompt": [{"role": "system", "content": "be kind"}, user("why é?")], "chosen": " so\n", "rejected": "no"}
    source = write(tmp_path / "pairs.jsonl", [*ROWS, CHAT, system])
    template = tmp_path / "strict.jinja"
    head = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    usual = AutoTokenizer.from_pretrained(byte_tokenizer).chat_template
    settings = prepare_module._settings
    for number, text in enumerate([usual, head + usual, "{{ strftime_now('%Y')[:0] }}" + usual]):
        template.write_text(text)
        found = []
        for left_out in ({}, {"careful": True}, {"chat": None}):
            with monkeypatch.context() as patch:
                patch.setattr(prepare_module, "_settings", lambda *given, changed=left_out: settings(*given) | changed)
                folder = tmp_path / f"store{number}{list(left_out)}"
                prepare(source, str(byte_tokenizer), PrepareOptions(chat_template=str(template)), folder)
            found.append(contents(folder))
        assert found[0] == found[1] == found[2]
        assert ("rendered by transformers" in capsys.readouterr().err) == (number == 2)


@pytest.mark.slow
def test_an_interrupted_command_goes_on_where_it_was(byte_tokenizer, tmp_path, monkeypatch):
    source = tmp_path / "pairs.jsonl"
    row = json.dumps({"prompt": "why " * 100, "chosen": "so 12345", "rejected": "no 12345"})
    source.write_text("".join(row.replace("12345", str(number)) + "\n" for number in range(60_000)))
    command = [sys.executable, "-m", "grmlight", "prepare", str(source), "--tokenizer", str(byte_tokenizer), "--out"]
    with subprocess.Popen(
        [*command, str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A process in the background is begun with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        while not (journals := list(tmp_path.glob(".store.partial-*/journal"))) or not journals[0].stat().st_size:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in said
    assert not (tmp_path / "store").exists()
    done = subprocess.run([*command, str(tmp_path / "store")], capture_output=True, text=True, check=True)
    assert re.search(r"going on at row \d*001 of an interrupted preparation", done.stderr)
    whole = prepare(str(source), str(byte_tokenizer), PrepareOptions(), tmp_path / "whole")
    (tmp_path / "store" / "report.json").unlink()
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    for part in ("60000 pairs,", "sharing prompts saves", "prompt", "chosen", "rejected", "rows/s"):
        assert part in done.stdout
    assert whole.rows == 60_000
    assert prepare(str(source), str(byte_tokenizer), PrepareOptions(), tmp_path / "whole").rows == 0
