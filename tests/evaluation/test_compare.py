"""Runs side by side: marks, paired differences, published rows, and mistakes in one line."""

import dataclasses
import json
import random

import pytest
import yaml

from grmlight.cli import main
from grmlight.evaluation.benchmarks import PairFile
from grmlight.evaluation.benchmarks.rewardbench import RewardBench
from grmlight.evaluation.compare import compare
from grmlight.evaluation.compare_output import as_json, as_markdown, as_text
from grmlight.evaluation.evaluate import evaluate, keep_rows
from grmlight.evaluation.paired_bootstrap import paired_difference
from grmlight.evaluation.report import write
from grmlight.evaluation.rows import Row, Rows, evaluation_rows_file, rows_file, write_rows
from grmlight.evaluation.run_files import read_runs
from tests.evaluation.verdicts import RuleScorer

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
        write_rows(evaluation_rows_file(folder, name), Rows(name, "same", each))
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
    assert any(line.split() == ["longer", "wins", "(tokens)", "50.0"] for line in text)
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
    assert below["base"][0].split() == ["95%", "interval", "[60.0,", "80.0]", "-", "-"]
    assert below["base"][1].split()[-3:] == ["68.8", "70.3", "69.1"]
    assert "paper: GRM, SFT (Table 2)" in below["grm"][1]
    assert below["grm"][1].split()[-3:] == ["71.5", "78.7", "73.0"]
    assert below["small"][1].endswith("not found  not found  not found")
    assert not any("paper" in line for line in below["other"])
    notes = [line for line in lines if line.startswith("paper, ")]
    assert "paper, Bradley-Terry (Table 2) beside mlp: head linear, here mlp" in notes
    assert "paper: Bradley-Terry (Table 2, other settings)" in below["mlp"][1]
    assert not any(" beside base" in note or " beside grm" in note for note in notes)
    (plain,) = as_json([table])["tables"]
    unlike = {row["beside"]: row["unlike"] for row in plain["rows"] if row["kind"] == "paper"}
    assert unlike == {"base": [], "mlp": ["head linear, here mlp"], "grm": [], "small": []}
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


def test_sections_of_runs_that_refused_different_rows_are_those_of_the_rows_that_both_have(tmp_path):
    """One run refuses most of the math rows, the other one prompt of the code: subsets weigh what they always do."""
    chance, benchmark = random.Random(5), RewardBench()
    subsets = [("math-prm", 40), *((f"hep-{name}", 10) for name in ("go", "java"))]
    raw = [
        [Row(f"{name} {n}", f"{name} {n // 2}", float(chance.random() < share), category=name)
         for name, count in subsets for n in range(count)]
        for share in (0.4, 0.7)
    ]  # fmt: skip
    raw[0] = [row for row in raw[0] if not (row.category == "math-prm" and int(row.row.split()[1]) < 30)]
    raw[1] = [row for row in raw[1] if row.row not in ("hep-go 0", "hep-go 1")]
    scores = {("rewardbench", "Reasoning"): 0.5, ("rewardbench", "average"): 0.5}
    given = [evaluated(tmp_path / f"r{n}", scores, {"rewardbench": benchmark.weighed(raw[n])}) for n in (0, 1)]
    shared = {row.row for row in raw[0]} & {row.row for row in raw[1]}

    def section(rows):
        weight = {"math-prm": 984, "hep-go": 164, "hep-java": 164}
        parts = {name: [row.right for row in rows if row.category == name and row.row in shared] for name in weight}
        return sum(weight[name] * sum(part) / len(part) for name, part in parts.items()) / sum(weight.values())

    expected = section(raw[1]) - section(raw[0])
    for folders, sign in ((given, 1), (given[::-1], -1)):
        (table,) = compare(read_runs(folders))
        reasoning, average = (cell.difference for cell in table.lines[1].cells[-2:])
        assert reasoning.value == pytest.approx(sign * expected, abs=1e-12)
        assert average.value == pytest.approx(sign * expected, abs=1e-12)
        assert reasoning.low < reasoning.value < reasoning.high
        assert reasoning.rows == 28
    text = as_text(compare(read_runs(given), draws=10))
    assert "over the 28 rows that both have; left out: 2 that r1 lacks, 30 that r0 lacks" in text


def test_a_section_of_which_the_runs_share_no_row_has_no_difference(tmp_path):
    rows = [rows_with(40, 80, categories=SECTIONS) for _ in range(2)]
    rows[1] = [dataclasses.replace(row, row="x" + row.row) if row.category == "Safety" else row for row in rows[1]]
    scores = {("rewardbench", name): 0.5 for name in (*SECTIONS, "average")}
    given = [evaluated(tmp_path / f"r{n}", scores, {"rewardbench": rows[n]}) for n in (0, 1)]
    (table,) = compare(read_runs(given), draws=10)
    assert [bool(cell.difference) for cell in table.lines[1].cells] == [True, True, False, True, True]


def test_a_set_and_a_benchmark_of_one_name_stand_side_by_side(tmp_path):
    given = []
    for name, right in (("a", 60), ("b", 70)):
        given.append(make_run(tmp_path / name, {"hhh": rows_with(right), "id": rows_with(50)}, fingerprint="file"))
        evaluated(tmp_path / name, {("hhh", "all"): right / 50}, {"hhh": rows_with(right, 50, seed=3)})
    preference, sets = compare(read_runs(given), draws=10)
    assert [cell.score and cell.score.accuracy for cell in preference.lines[0].cells] == [None, 1.2, None]
    assert preference.lines[1].cells[1].difference.rows == 50
    assert [column.header for column in sets.columns] == ["hhh (validation)", "id"]
    assert sets.lines[1].cells[0].difference.rows == 100


def test_categories_with_a_totals_name_are_no_totals(tmp_path):
    rows = [{"prompt": str(n), "chosen": f"a {n % 3}", "rejected": "b 1"} for n in range(12)]
    for row, name in zip(rows, ["all", "average", "Average.", "數學"] * 3, strict=True):
        row["category"] = name
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = PairFile()
    result = evaluate(RuleScorer(lambda answer: float(answer.split()[-1])), benchmark, benchmark.read(str(path)))
    names = ["all (category)", "average (category)", "Average.", "數學", "all"]
    assert [row.category for row in result.rows] == names
    assert len(result.reading.noted["category_named_as_a_total"]) == 6
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write([result], str(folder), json=folder / "evaluation.json")
        keep_rows([result], folder)
    runs = read_runs([str(tmp_path / "a"), str(tmp_path / "b")])
    assert ("pairs", "average") not in runs[0].scores
    (table,) = compare(runs, draws=10)
    assert [(column.header, column.category) for column in table.columns] == [("pairs", "all")]
    assert table.lines[0].cells[0].score.n == 12


def test_rulers_say_their_unit_and_whose_they_are(tmp_path):
    given = [make_run(tmp_path / name, {"mine": rows_with(60)}) for name in "ab"]
    for folder in given:
        evaluated(tmp_path / folder[-1], {("mtbench_clean", "all"): 0.7}, {})
    results = json.loads((tmp_path / "b/results.json").read_text())
    results["mine"]["longer_wins"] = 0.6
    (tmp_path / "b/results.json").write_text(json.dumps(results))
    text = as_text(compare(read_runs(given), draws=10)).splitlines()
    rulers = [line.split()[2:] for line in text if line.startswith("longer wins (")]
    assert rulers == [["(tokens)", "50.0", "-"], ["(characters)", "-", "40.0"]]
    assert "longer wins of b, on its own rows and tokens: mine 60.0" in text


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
    assert "s: b minus a is over the 90 rows that both have; left out: 10 that b lacks" in text
    back = as_text(compare(read_runs(given[::-1]), draws=10))
    assert "s: a minus b is over the 90 rows that both have; left out: 10 that b lacks" in back


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
    for name in ("results.json", "evaluation.json", "costs.json"):
        make_run(tmp_path / f"list-{name}", {"id": rows_with(60)})
        (tmp_path / f"list-{name}" / name).write_text("[]")
    for name in ("words", "shares", "lists"):
        make_run(tmp_path / name, {"id": rows_with(60)})
    (tmp_path / "words/costs.json").write_text('{"train_seconds": "much"}')
    (tmp_path / "shares/results.json").write_text('{"id": {"accuracy": "0.7"}}')
    (tmp_path / "lists/evaluation.json").write_text('{"rows": [[]]}')
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
        (["a", "apart"], "a and apart have no row of id in common; evaluate both"),
        (["x=a", "x=others"], "two runs are called x; name them apart"),
        (["a", "a"], "two runs are called a; name them apart"),
        (["bad-results.json"], "results.json: is no JSON"),
        (["bad-rows-id.json"], "rows-id.json: is no file of rows"),
        (["keys"], "keys/results.json: is no file of results ('low')"),
        (["list-results.json"], "list-results.json/results.json: is no JSON object; evaluate the run again"),
        (["list-evaluation.json"], "list-evaluation.json/evaluation.json: is no JSON object"),
        (["list-costs.json"], "list-costs.json/costs.json: is no JSON object"),
        (["words"], "words/costs.json: is no file of costs ('much' is no number); remove it"),
        (["shares"], "shares/results.json: is no file of results ('0.7' is no number)"),
        (["lists"], "lists/evaluation.json: is no file of `grmlight evaluate`"),
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
