"""Tasks and capabilities of a store's groups, looked up by row."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grmlight.data import GroupLoader, PrepareOptions, prepare
from grmlight.data.labels import group_labels
from grmlight.data.source import read_column

TASKS = {"chat": ["wit", "calm"], "code": ["style"]}
ROWS = [
    {"category": "chat", "capability": "calm"},
    {"category": "code"},
    {"category": "chat", "capability": "wit", "chosen": "same", "rejected": "same"},
    {"category": "code", "capability": "style"},
    {"category": "chat", "capability": None},
    {"category": "chat", "capability": "wit"},
]


def write(path, rows=ROWS):
    """Rows with a blank and a broken line between, which count as rows."""
    whole = [{"prompt": f"why {i}?", "chosen": f"so {i}", "rejected": "no"} | row for i, row in enumerate(rows)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(whole), path)
        return str(path)
    lines = [json.dumps(row) for row in whole]
    text = "\n".join([*lines[:2], "", '{"capability": broken', *lines[2:]]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.parquet"])
def test_labels_are_those_of_the_rows(name, tmp_path, byte_tokenizer):
    source = write(tmp_path / name)
    shift = 0 if name.endswith("parquet") else 2
    assert read_column(source, "capability") == {1: "calm", 3 + shift: "wit", 4 + shift: "style", 6 + shift: "wit"}
    prepared = prepare(source, str(byte_tokenizer), PrepareOptions())
    labels = group_labels(prepared.store, source, TASKS, strict=True)
    # The third row is refused: its sides are identical.
    assert labels.task_G.tolist() == [0, 1, 1, 0, 0]
    assert labels.capability_G.tolist() == [1, -1, 0, -1, 0]
    assert labels.unseen == {}
    for batch in GroupLoader(prepared.store, 2, seed=3, labels=labels):
        for group, row in enumerate(batch.row_C.tolist()):
            original = ROWS[row - 1 - (shift if row > 2 else 0)]
            assert batch.task_G[group] == list(TASKS).index(original["category"])
            known = original.get("capability")
            assert batch.capability_G[group] == (TASKS[original["category"]].index(known) if known else -1)
        moved = batch.to("cpu")
        assert moved.task_G is batch.task_G


def test_what_is_no_task_is_counted_or_refused(tmp_path, byte_tokenizer):
    rows = [*ROWS[:2], {"category": "poem", "capability": "rhyme"}, {}, {"category": "chat", "capability": "style"}]
    source = write(tmp_path / "pairs.jsonl", rows)
    prepared = prepare(source, str(byte_tokenizer), PrepareOptions())
    labels = group_labels(prepared.store, source, TASKS, strict=False)
    assert labels.task_G.tolist() == [0, 1, -1, -1, 0]
    assert labels.capability_G.tolist() == [1, -1, -1, -1, -1]
    assert labels.unseen == {"poem": 1, "": 1}
    with pytest.raises(ValueError, match=r"row 5 has category 'poem', which is no task \(chat, code\)"):
        group_labels(prepared.store, source, TASKS, strict=True)
    with pytest.raises(ValueError, match="row 7 has capability 'style', which is no capability of task 'chat'"):
        group_labels(prepared.store, source, TASKS | {"poem": ["rhyme"], "": ["x"]}, strict=True)
