"""Sources: files, parquet, data sets on disk, and what cannot be found."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grmlight._data_rs import read_pairs
from grmlight.data.source import as_json_lines, fingerprint

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
        with as_json_lines(str(tmp_path / f"{name}.parquet"), tmp_path / "scratch") as path:
            pairs = read_pairs(path, {})
        assert not pairs.refused
        assert [len(pairs.group(index)[1]) for index in range(len(pairs))] == sizes


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
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match=r"pairs\.parquet: cannot be read as parquet"):
        read(tmp_path / "pairs.parquet", tmp_path / "scratch")


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
