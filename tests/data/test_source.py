"""Sources: files, parquet, data sets on disk, and what cannot be found."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grmlight._data_rs import DataError, Pairs, read_pairs
from grmlight.data.source import as_json_lines, fingerprint, pair_source
from tests.data.rows import agree, assistant, lines, user

ROWS = [{"prompt": "p", "chosen": [{"role": "assistant", "content": "é\u2028"}], "rejected": "n", "margin": 1.5}]


def read(source, scratch):
    with as_json_lines(str(source), scratch) as path, open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_a_file_of_json_lines_is_taken_as_it_is(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n"))
    with as_json_lines(str(path), tmp_path) as found:
        assert found == str(path)


def test_parquet_and_data_sets_on_disk_become_the_same_lines(tmp_path):
    rows = [{"prompt": "p", "chosen": "é\u2028", "rejected": "n", "margin": 1.5}] * 3
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "disk")
    folder = tmp_path / "folder"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    for source in ("pairs.parquet", "disk", "folder"):
        assert read(tmp_path / source, tmp_path / "scratch") == rows
    assert not list((tmp_path / "scratch").iterdir())


def test_a_table_of_pairs_and_rankings_has_null_columns_that_count_as_absent(tmp_path):
    pair = {"id": 7, "prompt": "p", "chosen": "a", "rejected": "b"}
    ranking = {"id": 8, "prompt": "q", "responses": ["a", "b", "c"], "ratings": [1.0, 3.0, 2.0]}
    columns = pair.keys() | ranking.keys()
    rows = [dict.fromkeys(columns) | row for row in (pair, ranking)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    nothing = [dict.fromkeys(columns | {"conv_A", "capability", "margin"}) | ranking]
    pq.write_table(pa.Table.from_pylist(nothing), tmp_path / "rankings.parquet")
    for name, sizes in (("pairs", [2, 3]), ("rankings", [3])):
        pairs = read_pairs(pair_source(str(tmp_path / f"{name}.parquet")), {})
        assert not pairs.refused
        assert [len(pairs.group(index)[1]) for index in range(len(pairs))] == sizes


def contents(pairs: Pairs):
    """All that a reading tells."""
    groups = [
        (pairs.row(i), pairs.id(i), pairs.category(i), pairs.group(i), pairs.comparisons(i)) for i in range(len(pairs))
    ]
    return pairs.rows, pairs.skipped, pairs.refused, pairs.noted, groups


FORMATS = [
    {"id": 1, "prompt": "p", "chosen": "a", "rejected": "b", "category": "c", "score": 1, "when": b"x"},
    {"id": "x", "prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")], "margin": 0.5},
    {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")], "chosen_score": 2},
    {"prompt": "q", "responses": ["a", "b", "é\u2028"], "ratings": [1.0, 3.0, 2.0], "weight": 2, "soft_label": 0.25},
    {"prompt": "q", "responses": [[assistant("a")], [assistant("b")]], "ranks": [1, 2]},
    {
        "conv_A": [user("q"), assistant("a")],
        "conv_B": [user("q"), assistant("b")],
        "conv_A_rating": 1,
        "conv_B_rating": 2,
    },
    {"prompt": "p", "chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": None},
]


@pytest.mark.parametrize("row", FORMATS)
def test_a_data_set_gives_the_records_of_its_json_lines(row, tmp_path):
    rows = [row, dict.fromkeys(row), row | {"prompt": None}, row]
    table = datasets.Dataset.from_list(rows)
    for name, found in {"whole": table, "chosen": table.select([3, 0, 1]).shuffle(seed=1)}.items():
        found.save_to_disk(tmp_path / name)
        pq.write_table(
            pa.Table.from_pylist(found.to_list(), schema=found.features.arrow_schema), tmp_path / "a.parquet"
        )
        as_lines = lines(*({name: each for name, each in row.items() if name != "when"} for row in found))
        expected, _ = agree(as_lines)
        for source in (tmp_path / name, tmp_path / "a.parquet"):
            assert contents(read_pairs(pair_source(str(source)), {})) == contents(expected)


def test_a_data_set_whose_rows_were_selected_keeps_their_order(tmp_path, monkeypatch):
    rows = [{"prompt": f"{number}", "chosen": "a", "rejected": "b"} for number in range(2500)]
    selected = datasets.Dataset.from_list(rows).shuffle(seed=3)
    monkeypatch.setattr("grmlight.data.source._load_hub", lambda _: selected)
    pairs = read_pairs(pair_source("some/name"), {})
    assert [pairs.group(index)[0] for index in range(len(pairs))] == selected["prompt"][:]


def test_several_parquet_files_count_their_rows_on(tmp_path):
    for name, numbers in {"a": range(3), "b": range(0), "c": range(3, 7)}.items():
        rows = [{"prompt": f"{number}", "chosen": "a", "rejected": "b"} for number in numbers]
        schema = pa.schema([("prompt", pa.string()), ("chosen", pa.string()), ("rejected", pa.string())])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / f"{name}.parquet")
    pairs = read_pairs(pair_source(str(tmp_path)), {})
    assert [(pairs.row(index), pairs.group(index)[0]) for index in range(7)] == [(n + 1, f"{n}") for n in range(7)]


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4"])
def test_compressed_parquet(compression, tmp_path):
    pq.write_table(pa.Table.from_pylist([FORMATS[0]]), tmp_path / "a.parquet", compression=compression)
    assert len(read_pairs(pair_source(str(tmp_path / "a.parquet")), {})) == 1


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.uint64(), pa.string()),
    ],
)
def test_texts_of_every_kind(kind):
    texts = pa.array(["a", None, "b"]).cast(kind)
    table = pa.table({"prompt": ["p", "q", "r"], "chosen": texts, "rejected": ["x", "y", "b"]})
    pairs = read_pairs(table.slice(0, 3), {})
    assert (pairs.group(0), pairs.refused) == (("p", ["a", "x"]), {"non_string": [2], "identical": [3]})
    assert read_pairs(table.slice(2), {}).refused == {"identical": [1]}


@pytest.mark.parametrize("kind", [pa.large_list, lambda item: pa.list_(item, 2)])
def test_lists_of_every_kind(kind):
    ratings = pa.array([[1, 2], None, [2, 1]], kind(pa.float16()))
    responses = pa.array([["a", "b"]] * 3, kind(pa.string()))
    table = pa.table({"prompt": ["p", "q", "r"], "responses": responses, "ratings": ratings})
    pairs = read_pairs(table, {})
    assert [pairs.comparisons(index) for index in range(len(pairs))] == [[(1, 0)], [(0, 1)]]
    assert pairs.refused == {"bad_number": [2]}
    assert read_pairs(table.slice(2), {}).row(0) == 1


TEXTS = st.sampled_from(["", "a", "b", "\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: b"])
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", None]), "content": TEXTS}) | st.none(),
    max_size=3,
)
NUMBERS = st.sampled_from([0.0, 1.0, -1.5, float("nan"), float("inf"), 1e300])
COLUMNS = {
    "prompt": [TEXTS, MESSAGES],
    "chosen": [TEXTS, MESSAGES],
    "rejected": [TEXTS, MESSAGES, NUMBERS],
    "responses": [st.lists(TEXTS | st.none(), max_size=4), st.lists(MESSAGES, max_size=3), MESSAGES, TEXTS],
    "ratings": [st.lists(NUMBERS | st.none(), max_size=4), NUMBERS],
    "ranks": [st.lists(st.integers(1, 3), max_size=4)],
    "conv_A": [MESSAGES],
    "conv_B": [MESSAGES],
    "conv_A_rating": [NUMBERS],
    "conv_B_rating": [st.integers(0, 2)],
    "margin": [NUMBERS, st.booleans()],
    "id": [st.integers(-(2**63), 2**63 - 1), TEXTS, NUMBERS],
    "unknown": [NUMBERS, TEXTS],
}
NAMES = st.sets(st.sampled_from(sorted(COLUMNS))) | st.just({"prompt", "responses", "ratings"})


@st.composite
def tables(draw):
    names = draw(NAMES) | {"chosen", "rejected"}
    kinds = {name: draw(st.sampled_from(COLUMNS[name])) | st.none() for name in sorted(names)}
    return draw(st.lists(st.fixed_dictionaries(kinds), min_size=1, max_size=6))


@settings(deadline=None, max_examples=200)
@given(tables(), st.integers(1, 3))
def test_any_table_gives_the_records_of_its_json_lines(rows, size):
    table = pa.Table.from_pylist(rows)
    expected, _ = agree(lines(*table.to_pylist()))
    stream = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=size))
    assert contents(read_pairs(stream, {})) == contents(expected)


def test_a_row_of_a_table_is_named_with_its_column(tmp_path):
    rows = [FORMATS[0] | {"margin": margin} for margin in (1.0, float("nan"))]
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=r"pairs\.parquet:2: a number .* in column margin; fix the row"):
        read_pairs(pair_source(str(path)), {"on_bad_row": "raise"})
    with pytest.raises(DataError, match=r"^t: its columns are a, b; a pair needs chosen"):
        read_pairs(pa.table({"b": [1], "a": [2]}), {"name": "t"})


def test_a_broken_table_is_named_with_its_row():
    good = pa.record_batch({"chosen": ["a"], "rejected": ["b"]})
    bad = pa.record_batch(
        [
            pa.array(["a"]),
            pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]),
        ],
        schema=good.schema,
    )

    def batches(last):
        yield good
        yield good
        if last is None:
            raise RuntimeError("gone")
        yield last

    for last, problem in ((bad, "column rejected is broken at row 3"), (None, "broken at row 3 or later")):
        stream = pa.RecordBatchReader.from_batches(good.schema, batches(last))
        with pytest.raises(DataError, match=f"^t: {problem}"):
            read_pairs(stream, {"name": "t"})


def test_a_killed_conversion_is_swept_by_the_next(tmp_path):
    stale = tmp_path / ".grmlight-tmp-999999999-source.jsonl"
    stale.write_text("half")
    pq.write_table(pa.Table.from_pylist([{"a": 1}]), tmp_path / "pairs.parquet")
    read(tmp_path / "pairs.parquet", tmp_path)
    assert not stale.exists()


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "no such name!"])
def test_what_is_not_there_is_said(name, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read(name, tmp_path)


def test_a_folder_of_something_else_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="neither .parquet files nor a data set"):
        read(tmp_path, tmp_path / "scratch")


def test_a_broken_parquet_file_is_named(tmp_path):
    path = tmp_path / "pairs.parquet"
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match=r"pairs\.parquet: cannot be read as parquet"):
        read(path, tmp_path / "scratch")
    with pytest.raises(DataError, match=r"pairs\.parquet: cannot be read as Parquet from row 1 on"):
        read_pairs(pair_source(str(path)), {})


def test_several_splits_ask_for_one(tmp_path):
    one = datasets.Dataset.from_list([{"a": 1}])
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match="has splits train, test"):
        read(tmp_path / "both", tmp_path / "scratch")


def test_the_fingerprint_follows_the_content(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("a")
    first = fingerprint(str(path))
    path.write_text("b")
    assert fingerprint(str(path)) != first


def test_what_else_lies_beside_parquet_files_is_not_the_source(tmp_path):
    """A README, or the store itself."""
    datasets.Dataset.from_list([{"prompt": "p", "chosen": "a", "rejected": "b"}]).to_parquet(
        str(tmp_path / "rows.parquet")
    )
    before = fingerprint(str(tmp_path))
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text("{}")
    (tmp_path / "README.md").write_text("about")
    assert fingerprint(str(tmp_path)) == before
    datasets.Dataset.from_list([{"prompt": "p", "chosen": "a", "rejected": "b"}]).to_parquet(
        str(tmp_path / "more.parquet")
    )
    assert fingerprint(str(tmp_path)) != before
