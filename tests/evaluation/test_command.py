"""`grmlight evaluate` as users run it, and its reports."""

import json
import re

import pytest

from grmlight.cli import main
from grmlight.data.options import PrepareOptions
from grmlight.data.texts import TextGroup
from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation.benchmarks import PairFile
from grmlight.evaluation.evaluate import evaluate
from grmlight.evaluation.report import as_markdown, plot
from grmlight.export import save_model
from grmlight.models.judge import Judge
from tests.evaluation.verdicts import RuleScorer
from tests.tiny_models import tiny_reward_model


@pytest.fixture(scope="module")
def run(tmp_path_factory, byte_tokenizer):
    """A run directory with a tiny model."""
    folder = tmp_path_factory.mktemp("run")
    model = tiny_reward_model(config={"vocab_size": 320, "max_position_embeddings": 4096})
    save_model(model, folder / "model", str(byte_tokenizer), PrepareOptions(max_length=1024))
    return folder


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"why {n // 2}", "chosen": "so " * n, "rejected": "no", "category": "a|b" if n % 2 else "c"}
        for n in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_give_a_table_json_markdown_and_a_picture(run, pairs, tmp_path, capsys):
    files = {
        name: tmp_path / f"out.{ending}" for name, ending in (("json", "json"), ("markdown", "md"), ("plot", "png"))
    }
    main(["evaluate", str(run), "--pairs", str(pairs), *(f"--{name}={path}" for name, path in files.items())])
    printed = capsys.readouterr().out
    assert re.search(r"pairs +all +7 +0\.\d{3} +\[", printed)
    assert "pairs: " in printed
    assert "refused 1: empty (1)" in printed
    found = json.loads(files["json"].read_text())
    assert found["model"] == str(run)
    assert {"date", "versions", "inputs"} < found.keys()
    assert {row["category"]: row["n"] for row in found["rows"]} == {"a|b": 4, "c": 3, "all": 7}
    figures = {"benchmark", "category", "n", "accuracy", "low", "high", "ruler", "ece", "length_correlation"}
    assert all(figures < row.keys() for row in found["rows"])
    assert found["rows"][-1]["low"] <= found["rows"][-1]["accuracy"] <= found["rows"][-1]["high"]
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    lines = files["markdown"].read_text().splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")}) == 1
    kept = json.loads((run / "evaluation.json").read_text())
    assert kept["rows"] == found["rows"]
    before = (run / "evaluation.json").read_bytes()
    main(["evaluate", str(run / "model"), "--pairs", str(pairs), "--max_length=12", "--tokens_per_forward=30"])
    assert "over length" in capsys.readouterr().out
    assert (run / "evaluation.json").read_bytes() == before


def test_a_judge_is_measured_as_a_reward_model_is(pairs, tmp_path, byte_tokenizer):
    tiny_reward_model(config={"vocab_size": 320, "max_position_embeddings": 4096}).lm.save_pretrained(tmp_path / "lm")
    load_tokenizer(str(byte_tokenizer)).save_pretrained(tmp_path / "lm")
    judge = Judge(str(tmp_path / "lm"))
    judge.save_pretrained(tmp_path / "judge")
    main(["evaluate", str(tmp_path / "judge"), "--pairs", str(pairs), f"--json={tmp_path / 'out.json'}"])
    found = json.loads((tmp_path / "out.json").read_text())["rows"][-1]
    rows = [row for row in map(json.loads, pairs.read_text().splitlines()) if row["chosen"]]
    scores = judge.score([TextGroup(row["prompt"], (row["chosen"], row["rejected"])) for row in rows])
    assert found["accuracy"] == pytest.approx(sum(better > worse for better, worse in scores) / len(rows))


@pytest.mark.shared_data
def test_a_named_benchmark_from_a_local_copy(run, shared_data, tmp_path, capsys):
    source = shared_data / "hhh_alignment_a.jsonl"
    for seed in (0, 0, 1):
        out = tmp_path / f"{seed}.json"
        arguments = ["--max_length=4096", "--on_overlong=raise", f"--seed={seed}", f"--json={out}"]
        main(["evaluate", str(run), f"--benchmarks=hhh={source}", *arguments])
        rows = json.loads(out.read_text())["rows"]
        assert {row["category"]: row["n"] for row in rows}["all"] == 112
    assert "category not whole" in capsys.readouterr().out
    one, other = (json.loads((tmp_path / f"{seed}.json").read_text())["rows"][-1] for seed in (0, 1))
    assert one["accuracy"] == other["accuracy"]
    assert (one["low"], one["ece_low"]) != (other["low"], other["ece_low"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "there is nothing to evaluate on"),
        (["RUN", "--benchmarks", "mmlu"], "'mmlu' is no benchmark; choose from rewardbench"),
        (["RUN", "--benchmarks", "hhh=x,hhh=y"], "'hhh' is asked for twice"),
        (["RUN", "--pairs", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["RUN", "--pairs", "columns.jsonl"], "row 1 has the columns question, not chosen, rejected"),
        (["nowhere", "--pairs", "pairs.jsonl"], "nowhere: holds no model"),
        ([".", "--pairs", "pairs.jsonl"], "holds no model"),
        (["RUN", "--pairs", "pairs.jsonl", "--plot", "x.gif"], "x.gif: a picture ends with"),
        (["RUN", "--pairs", "pairs.jsonl", "--json", "no/such/x.json"], "name a file in a folder that exists"),
        (["RUN", "--pairs", "pairs.jsonl", "--max_length", "5", "--on_overlong", "raise"], "max_length is 5"),
        (["RUN", "--pairs", "pairs.jsonl", "--max_length", "5"], "7 over length"),
        (["RUN", "--pairs", "pairs.jsonl", "--max_length", "0"], "max_length must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, run, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "columns.jsonl").write_text('{"question": "why"}\n')
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *(str(run) if argument == "RUN" else argument for argument in arguments)])
    assert message in str(end.value)
    assert "\n" not in str(end.value)


def test_figures_that_are_not_defined_are_left_open(pairs):
    benchmark = PairFile()
    found = evaluate(RuleScorer(lambda _: 0.0), benchmark, benchmark.read(str(pairs)))
    assert "| 0.500 |" in as_markdown("m", [found])
    assert "| - |" in as_markdown("m", [found])
    assert len(plot([found, found]).axes) == 2
