"""Local copies as they lie on people's disks: clones of the hub's data sets, saved data sets, and odd JSON files."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grmlight.data.source import read_column
from grmlight.evaluation.benchmarks import PairFile, read_benchmark
from grmlight.evaluation.evaluate import evaluate
from grmlight.evaluation.report import as_table
from tests.evaluation.verdicts import RuleScorer

SUBSET = "alpacaeval-easy"


def bench(*names):
    return [{"prompt": f"p {name}", "chosen": "a", "rejected": "b", "subset": SUBSET} for name in names]


def judged(judge):
    sides = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": text}] for text in "ab"]
    return [{"conversation_a": sides[0], "conversation_b": sides[1], "winner": "model_a", "turn": 1, "judge": judge}]


def rated(source):
    (row,) = judged("")
    sides = {"conv_A": row["conversation_a"], "conv_B": row["conversation_b"]}
    return [{**sides, "conv_A_rating": 1, "conv_B_rating": 0, "source": source}]


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def prompts(name, path):
    _, reading = read_benchmark(f"{name}={path}")
    return [each.group.prompt for each in reading.examples], reading


@pytest.mark.parametrize("layout", ["data/{}-00000-of-00001.parquet", "default/{}/0000.parquet", "{}.parquet"])
def test_of_a_cloned_data_set_the_benchmarks_own_split_is_read(layout, tmp_path):
    for split in ("filtered", "raw"):
        parquet(tmp_path / layout.format(split), bench(split, split))
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/meta.json").write_text("{}")
    found, reading = prompts("rewardbench", tmp_path)
    assert found == ["p filtered", "p filtered"]
    assert reading.noted["file_of_another_split"] == [layout.format("raw")]
    assert [each.row for each in reading.examples] == ["1", "2"]


def test_of_a_cloned_data_set_the_benchmarks_configuration_is_read(tmp_path):
    for config in ("all", "openai"):
        for split in ("train", "val"):
            parquet(tmp_path / config / f"{split}-00000-of-00001.parquet", rated(f"{config} {split}"))
    _, reading = read_benchmark(f"unified_feedback={tmp_path}")
    assert [each.category for each in reading.examples] == ["all val"]
    assert len(reading.noted["file_of_another_split"]) == 3


def test_several_splits_of_a_benchmark_keep_their_names(tmp_path):
    for split, judge in (("human", None), ("gpt4_pair", None)):
        parquet(tmp_path / "data" / f"{split}-00000-of-00001-25f4910.parquet", judged(judge))
    for benchmark in ("mtbench", "mtbench_clean"):
        _, reading = read_benchmark(f"{benchmark}={tmp_path}")
        assert [each.category for each in reading.examples] == ["human", "gpt4_pair"]
    saved = tmp_path / "saved"
    tables = {name: datasets.Dataset.from_list(judged(name)) for name in ("human", "gpt4_pair")}
    datasets.DatasetDict(tables).save_to_disk(saved)
    _, reading = read_benchmark(f"mtbench={saved}")
    assert [(each.category, each.row) for each in reading.examples] == [
        ("human", "human:1"),
        ("gpt4_pair", "gpt4_pair:1"),
    ]


def test_of_a_saved_dictionary_of_data_sets_the_benchmarks_own_split_is_read(tmp_path):
    tables = {name: datasets.Dataset.from_list(bench(name)) for name in ("filtered", "raw")}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "both")
    assert prompts("rewardbench", tmp_path / "both")[0] == ["p filtered"]
    assert prompts("rewardbench", tmp_path / "both/raw")[0] == ["p raw"]
    datasets.DatasetDict({"mine": tables["raw"]}).save_to_disk(tmp_path / "one")
    assert prompts("rewardbench", tmp_path / "one")[0] == ["p raw"]


@pytest.mark.parametrize("saved", [True, False])
def test_splits_of_which_none_is_known_are_one_line(saved, tmp_path):
    folder = tmp_path / "set"
    if saved:
        tables = {name: datasets.Dataset.from_list(bench(name)) for name in ("one", "two")}
        datasets.DatasetDict(tables).save_to_disk(folder)
    else:
        for name in ("one", "two"):
            parquet(folder / f"data/{name}-00000-of-00001.parquet", bench(name))
    for read in (PairFile().read, lambda path: read_benchmark(f"rewardbench={path}")):
        with pytest.raises(ValueError, match=rf"set: holds the splits one, two; name one of them, as in {folder}/\S+$"):
            read(str(folder))
    example = folder / ("one" if saved else "data/one-00000-of-00001.parquet")
    assert len(PairFile().read(str(example)).examples) == 1


def test_training_says_alike_which_folder_of_a_saved_dictionary_to_name(tmp_path):
    tables = {name: datasets.Dataset.from_list(bench(name)) for name in ("one", "two")}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=rf"set: has splits one, two; name one, as in {tmp_path}/set/one$"):
        read_column(str(tmp_path / "set"), "prompt")
    assert read_column(str(tmp_path / "set/one"), "prompt") == {1: "p one"}


@pytest.mark.parametrize("before", ["", "\n", "\ufeff", "\ufeff \r\n\t"])
@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz", "rows.jsonl"])
def test_white_space_and_a_byte_order_mark_may_stand_in_front(before, name, tmp_path):
    rows = bench("one", "two")
    text = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows, indent=1)
    content = (before + text).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert prompts("rewardbench", tmp_path / name)[0] == ["p one", "p two"]


def test_a_json_list_that_is_cut_off_is_named_with_the_place(tmp_path):
    text = json.dumps(bench("one", "two"), indent=1)
    (tmp_path / "rows.json").write_text(text[: text.index("p two") + 3])
    with pytest.raises(ValueError, match=r"rows.json: line 9, column 13: the JSON list is broken or cut off") as error:
        read_benchmark(f"rewardbench={tmp_path / 'rows.json'}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_json_at_all_says_what_is_wanted(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps({"rows": bench("one")}, indent=1))
    with pytest.raises(ValueError, match=r"refused: \d+ invalid json\); give JSON lines, one object a line"):
        read_benchmark(f"rewardbench={tmp_path / 'rows.json'}")


def test_a_line_that_is_no_text_is_refused_alone_as_in_training(tmp_path):
    lines = [json.dumps(row).encode() for row in bench("one", "two")]
    (tmp_path / "rows.jsonl").write_bytes(lines[0] + b"\n\xff\xfe\n" + lines[1])
    found, reading = prompts("rewardbench", tmp_path / "rows.jsonl")
    assert found == ["p one", "p two"]
    assert reading.refused == {"invalid_json": ["2"]}


def test_a_compressed_file_is_told_by_its_bytes_as_in_training(tmp_path):
    content = b"".join(json.dumps(row).encode() + b"\n" for row in bench("one"))
    (tmp_path / "rows.jsonl").write_bytes(gzip.compress(content))
    assert len(PairFile().read(str(tmp_path / "rows.jsonl")).examples) == 1
    assert read_column(str(tmp_path / "rows.jsonl"), "prompt") == {1: "p one"}


def test_categories_are_texts_and_stay_on_their_line(tmp_path):
    names = ["a\nb", None, ["c"], 3, ""]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(bench("x")[0] | {"category": name, "source": "s"}) + "\n" for name in names)
    )
    benchmark = PairFile()
    reading = benchmark.read(str(tmp_path / "rows.jsonl"))
    assert [each.category for each in reading.examples] == ["a\nb", "s", "s", "s", "s"]
    table = as_table([evaluate(RuleScorer(len), benchmark, reading)])
    assert "pairs      a b " in table


def test_pairs_may_be_named_as_training_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="^some/set@all:val: no such file, and no data set of that name could be loaded"
    ):
        PairFile().read("some/set@all:val")
    with pytest.raises(ValueError, match="^nowhere.jsonl: no such file; give a path that exists or a data set"):
        PairFile().read("nowhere.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"question": "q"}\n')
    with pytest.raises(ValueError, match="not chosen, rejected; give pairs or rankings, as training takes them"):
        PairFile().read(str(tmp_path / "rows.jsonl"))
