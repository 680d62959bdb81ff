"""Runs side by side: marks, paired differences, published rows, and mistakes in one line."""

import json
import random

import pytest
import yaml

from grmlight.cli import main
from grmlight.evaluation.compare import compare
from grmlight.evaluation.compare_output import as_json, as_markdown, as_text
from grmlight.evaluation.paired_bootstrap import paired_difference
from grmlight.evaluation.rows import Row, Rows, rows_file, write_rows
from grmlight.evaluation.run_files import read_runs

SECTIONS = ("Chat", "Chat Hard", "Safety", "Reasoning")


def rows_with(right, count=100, seed=0, categories=("",)):
    """Rows of which so many are right, two a prompt."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    chosen = set(order[:right])
    return [
        Row(str(n + 1), f"p{n // 2}", float(n in chosen), 1.0, categories[n % len(categories)]) for n in range(count)
    ]


def make_run(folder, sets, fingerprint="same", costs=None, config=None, keep_rows=True):
    """A run directory as `fit` leaves it."""
    folder.mkdir(parents=True)
    results = {}
    for name, rows in sets.items():
        accuracy = sum(row.right for row in rows) / len(rows)
        bounds = {"low": accuracy - 0.1, "high": accuracy + 0.1}
        results[name] = {"accuracy": accuracy, "pairs": float(len(rows)), "longer_wins": 0.5} | bounds
        if keep_rows:
            write_rows(rows_file(folder, name), Rows(f"{name}.jsonl", fingerprint, rows))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "costs.json").write_text(json.dumps(costs or {}))
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {}))
    return str(folder)


def evaluated(folder, scores, rows):
    """A run directory after `grmlight evaluate`."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"n": 100, "low": 0.1, "high": 0.9, "ruler": 0.4, "ece": 0.0, "length_correlation": None}
    found = [{"benchmark": b, "category": c, "accuracy": value} | given for (b, c), value in scores.items()]
    (folder / "evaluation.json").write_text(json.dumps({"model": str(folder), "rows": found}))
    for name, each in rows.items():
        write_rows(rows_file(folder, name), Rows(name, "same", each))
    return str(folder)


def config_of(stride=20, head="mlp", **model):
    """What tells a run's setting."""
    train = {"train": "llm-blender/Unified-Feedback@all:train", "prepare": {"stride": stride, "flip": 0.0}}
    given = {"backbone": {"name": "google/gemma-2b-it", "frozen": False}, "head": {"kind": head}} | model
    return {"trainer": {"callbacks": []}, "model": {"init_args": given}, "data": {"init_args": train}}


def marks(tmp_path, *right, count=100):
    given = [make_run(tmp_path / f"r{n}", {"a": rows_with(each, count)}) for n, each in enumerate(right)]
    (table,) = compare(read_runs(given), draws=10)
    return [line.cells[0].mark for line in table.lines]


def test_best_and_second_are_marked_and_equal_ones_share(tmp_path):
    assert marks(tmp_path / "a", 60, 80, 70) == ["", "best", "second"]
    assert marks(tmp_path / "b", 80, 70, 80, 70, 60) == ["best", "second", "best", "second", ""]
    assert marks(tmp_path / "c", 80, 80) == ["best", "best"]
    assert marks(tmp_path / "d", 80) == [""]
    # 71.35% and 71.40% are both shown as 71.4, and 71.25% is second.
    assert marks(tmp_path / "e", 1427, 1428, 1425, count=2000) == ["best", "best", "second"]


def test_differences_are_paired_with_the_first_run(tmp_path):
    one, two = rows_with(60), rows_with(70, seed=1)
    given = [make_run(tmp_path / "one", {"a": one}), make_run(tmp_path / "two", {"a": two})]
    (table,) = compare(read_runs(given))
    assert table.lines[0].cells[0].difference is None
    assert table.lines[1].cells[0].difference == paired_difference([(one, two)])
    (plain,) = as_json([table])["tables"]
    found = plain["rows"][1]["cells"]["a"]["difference"]
    assert found["value"] == pytest.approx(0.1)
    assert (found["rows"], found["prompts"]) == (100, 50)
    assert found["low"] < 0.1 < found["high"]
    low, high = (f"{100 * found[bound]:+.1f}" for bound in ("low", "high"))
    for text in (as_text([table]), as_markdown([table])):
        assert f"+10.0 [{low}, {high}]" in text


def test_text_and_markdown_show_marks_costs_and_the_ruler(tmp_path):
    costs = {"trainable_parameters": 1234567, "train_seconds": 3.14159, "scoring_passes": 3}
    given = [
        make_run(tmp_path / "one", {"a": rows_with(60)}, costs=costs),
        make_run(tmp_path / "two", {"a": rows_with(70)}),
    ]
    tables = compare(read_runs(given), draws=10)
    text, markdown = as_text(tables).splitlines(), as_markdown(tables)
    (one,) = (line.split() for line in text if line.startswith("one"))
    assert one == ["one", "60.0+", "1,234,567", "3.1", "3"]
    (two,) = (line.split() for line in text if line.startswith("two"))
    assert two == ["two", "70.0*", "-", "-", "-"]
    assert any(line.split() == ["longer", "wins", "50.0"] for line in text)
    assert "| one | *60.0* | 1,234,567 | 3.1 | 3 |" in markdown
    assert "| two | **70.0** | - | - | - |" in markdown


def test_the_published_row_stands_below_ours(tmp_path):
    sets = {"unified_feedback": rows_with(70)}
    sft = {"class_path": "grmlight.regularizers.TextGeneration", "init_args": {"form": "log_sigmoid"}}
    grm = config_of()
    grm["trainer"]["callbacks"] = [sft]
    given = [
        make_run(tmp_path / "base", sets, config=config_of(head="linear")),
        make_run(tmp_path / "mlp", sets, config=config_of()),
        make_run(tmp_path / "grm", sets, config=grm),
        make_run(tmp_path / "small", sets, config=config_of(stride=100)),
        make_run(tmp_path / "other", sets, config=config_of(stride=3)),
    ]
    (table,) = compare(read_runs(given), draws=10)
    lines = as_text([table]).splitlines()
    below = {line.split()[0]: lines[n + 1 : n + 3] for n, line in enumerate(lines) if not line.startswith(" ")}
    assert below["base"][0].split()[-3:] == ["68.8", "70.3", "69.1"]
    assert "paper: GRM, SFT (Table 2)" in below["grm"][1]
    assert below["grm"][1].split()[-3:] == ["71.5", "78.7", "73.0"]
    assert below["small"][1].endswith("not found  not found  not found")
    assert not any("paper" in line for line in below["other"])
    notes = [line for line in lines if line.startswith("paper, ")]
    assert any("its head is linear, that of mlp mlp" in note for note in notes)
    assert not any("that of base" in note for note in notes)
    assert any("Table 2: BNRM (arXiv 2602.10623)" in note for note in notes)
    assert any("Table 7: not found" in note for note in notes)
    assert "paper:" not in as_text(compare(read_runs(given), published="none", draws=10))
    around = as_text(compare(read_runs(given[:1]), published="all", draws=10))
    assert all(
        f"paper: {label} (Table 2)" in around for label in ("GRM, DPO", "ensemble of 3, mean", "frozen backbone")
    )
    assert around.count("paper: Bradley-Terry (Table 2)") == 1


def test_rewardbench_by_section_and_its_average_pairs_each_section(tmp_path):
    keys = [("rewardbench", name) for name in SECTIONS]
    given, rows = [], []
    for number, right in enumerate((40, 70)):
        rows.append(rows_with(right, 80, seed=number, categories=SECTIONS))
        parts = [[row for row in rows[-1] if row.category == name] for name in SECTIONS]
        shares = [sum(row.right for row in part) / len(part) for part in parts]
        scores = dict(zip(keys, shares, strict=True)) | {("rewardbench", "average"): sum(shares) / 4}
        scores["rewardbench", "math-prm"] = 0.5
        given.append(evaluated(tmp_path / f"r{number}", scores, {"rewardbench": rows[-1]}))
    (table,) = compare(read_runs(given))
    assert [column.header for column in table.columns] == ["Chat", "Chat-Hard", "Safety", "Reasoning", "Average"]
    by_section = [tuple([row for row in run if row.category == name] for run in rows) for name in SECTIONS]
    *sections, average = (cell.difference for cell in table.lines[1].cells)
    assert sections == [paired_difference([part]) for part in by_section]
    assert average == paired_difference(by_section)
    scores = [line.cells[-1].score.accuracy for line in table.lines]
    assert average.value == pytest.approx(scores[1] - scores[0])


def test_runs_with_both_tables_print_both_or_the_one_asked_for(tmp_path):
    given = [make_run(tmp_path / name, {"id": rows_with(60), "unified_feedback": rows_with(50)}) for name in "ab"]
    for folder in given:
        evaluated(
            tmp_path / folder[-1], {("hhh", "all"): 0.7, ("hhh", "honest"): 0.6, ("mtbench_clean", "all"): 0.8}, {}
        )
    tables = compare(read_runs(given), draws=10)
    assert [table.name for table in tables] == ["preference", "sets"]
    assert [column.header for column in tables[0].columns] == ["Unified-Feedback", "HHH", "MT-Bench"]
    assert [column.header for column in tables[1].columns] == ["id", "mtbench_clean"]
    assert [cell.score and cell.score.accuracy for cell in tables[0].lines[0].cells] == [0.5, 0.7, None]
    (only,) = compare(read_runs(given), "sets", draws=10)
    assert only.name == "sets"
    with pytest.raises(ValueError, match="no result for the table 'rewardbench'"):
        compare(read_runs(given), "rewardbench")
    assert "hhh: a and b kept no rows, so b is not paired with a" in as_text(tables)


def test_rows_that_one_run_lacks_are_said(tmp_path):
    given = [make_run(tmp_path / "a", {"s": rows_with(60)}), make_run(tmp_path / "b", {"s": rows_with(60)[:90]})]
    text = as_text(compare(read_runs(given), draws=10))
    assert "s: 90 rows are in both a (100) and b (90); the difference is over them alone" in text


def test_labels_are_the_ends_of_paths_that_tell_runs_apart(tmp_path):
    given = [
        make_run(tmp_path / place / "version_0", {"s": rows_with(60)}) for place in ("x/grm", "y/grm", "y/vanilla")
    ]
    assert [run.label for run in read_runs(given)] == ["x/grm", "y/grm", "y/vanilla"]
    assert [run.label for run in read_runs(given[1:])] == ["grm", "vanilla"]
    assert [run.label for run in read_runs([f"GRM={given[0]}", given[2]])] == ["GRM", "vanilla"]
    again = make_run(tmp_path / "y/grm/version_1", {"s": rows_with(60)})
    assert [run.label for run in read_runs([given[2], again])] == ["vanilla", "grm"]
    assert [run.label for run in read_runs([given[1], again])] == ["grm/version_0", "grm/version_1"]


@pytest.fixture
def two(tmp_path):
    """Runs that cannot be compared, by what is wrong."""
    make_run(tmp_path / "a", {"id": rows_with(60), "ood": rows_with(50)})
    make_run(tmp_path / "fewer", {"id": rows_with(60)})
    make_run(tmp_path / "others", {"id": rows_with(60), "ood": rows_with(50)}, fingerprint="other")
    renamed = [Row("x" + row.row, row.prompt, row.right) for row in rows_with(60)]
    make_run(tmp_path / "apart", {"id": renamed, "ood": rows_with(50)})
    (tmp_path / "empty").mkdir()
    for name in ("results.json", "rows-id.json"):
        make_run(tmp_path / f"bad-{name}", {"id": rows_with(60)})
        (tmp_path / f"bad-{name}" / name).write_text("{]")
    make_run(tmp_path / "keys", {"id": rows_with(60)})
    make_run(tmp_path / "yaml", {"id": rows_with(60)})
    (tmp_path / "yaml/config.yaml").write_text("a: [")
    (tmp_path / "keys/results.json").write_text('{"id": {"accuracy": 1}}')
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to compare; name run directories"),
        (["a", "nowhere"], "nowhere: is no run: there is no such folder"),
        (["a", "empty"], "empty: is no run: holds neither results.json nor evaluation.json"),
        (["a", "fewer"], "different sets: fewer has no result on ood, which a has"),
        (["fewer", "a"], "different sets: fewer has no result on ood, which a has"),
        (["a", "others"], "id is other data in others (id.jsonl) than in a (id.jsonl)"),
        (["a", "apart"], "a and apart on id: the runs have no row in common"),
        (["x=a", "x=others"], "two runs are called x; name them apart"),
        (["a", "a"], "two runs are called a; name them apart"),
        (["bad-results.json"], "results.json: is no JSON"),
        (["bad-rows-id.json"], "rows-id.json: is no file of rows"),
        (["keys"], "keys/results.json: is no file of results ('low')"),
        (["yaml"], "yaml/config.yaml: is no YAML"),
        (["a", "--table", "rewardbench"], "a: no result for the table 'rewardbench'"),
        (["a", "--table", "none"], "--table"),
        (["a", "--plot", "p.txt"], "p.txt: a picture ends with .png, .svg or .pdf"),
        (["a", "--json", "none/f.json"], "none/f.json: name a file in a folder that exists"),
    ],
)
def test_a_mistake_ends_with_one_line_that_names_it(arguments, message, two, monkeypatch):
    monkeypatch.chdir(two)
    with pytest.raises(SystemExit) as end:
        main(["compare", *arguments])
    assert message in str(end.value)
    assert "\n" not in str(end.value)


def test_the_command_prints_and_writes_what_is_asked_for(two, monkeypatch, capsys):
    monkeypatch.chdir(two)
    files = ["--json", "t.json", "--markdown", "t.md", "--plot", "t.svg"]
    main(["compare", "a", "b=a", *files])
    printed = capsys.readouterr().out
    assert "+0.0 [+0.0, +0.0]" in printed
    assert json.loads((two / "t.json").read_text())["tables"][0]["columns"] == ["id", "ood"]
    assert (two / "t.md").read_text().startswith("## The sets")
    assert "<svg" in (two / "t.svg").read_text()
    assert not list(two.glob(".grmlight-tmp*"))
