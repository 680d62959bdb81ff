"""`grmlight evaluate --keep DIR`: models that are of no run enter the comparison."""

import json

import pytest

from grmlight.cli import main
from grmlight.data.options import PrepareOptions
from grmlight.data.tokenizer import load_tokenizer
from grmlight.export import save_model
from grmlight.models.judge import Judge
from tests.tiny_models import tiny_reward_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, byte_tokenizer):
    """A run, a judge, and pairs."""
    folder = tmp_path_factory.mktemp("kept")
    model = tiny_reward_model(config={"vocab_size": 320, "max_position_embeddings": 4096})
    save_model(model, folder / "run" / "model", str(byte_tokenizer), PrepareOptions())
    model.lm.save_pretrained(folder / "lm")
    load_tokenizer(str(byte_tokenizer)).save_pretrained(folder / "lm")
    Judge(str(folder / "lm")).save_pretrained(folder / "judge")
    rows = [{"prompt": f"why {n}", "chosen": f"so {n}", "rejected": f"no {n * n}"} for n in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_judge_is_compared_with_a_run_row_by_row(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(folder)
    main(["evaluate", "run", "--pairs=pairs.jsonl"])
    main(["evaluate", "judge", "--pairs=pairs.jsonl", "--keep=judged", f"--json={tmp_path / 'judge.json'}"])
    kept, written = (
        json.loads(path.read_text()) for path in (folder / "judged/evaluation.json", tmp_path / "judge.json")
    )
    assert kept["rows"] == written["rows"]
    assert sorted(each.name for each in (folder / "judged").iterdir()) == [
        "evaluation-rows-pairs.json",
        "evaluation.json",
    ]
    capsys.readouterr()
    main(["compare", "run", "judged", f"--json={tmp_path / 'compared.json'}"])
    assert "judged" in capsys.readouterr().out
    assert "difference" in (tmp_path / "compared.json").read_text()
    main(["evaluate", "run/model", "--pairs=pairs.jsonl", "--keep=judged"])
    assert json.loads((folder / "judged/evaluation.json").read_text())["model"] == "run/model"


@pytest.mark.parametrize(
    ("keep", "message"),
    [("pairs.jsonl", "name a folder"), ("no/such", "name a folder"), ("run", "run: is a run directory")],
)
def test_a_folder_that_cannot_keep_is_one_line(keep, message, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match=message):
        main(["evaluate", "judge", "--pairs=pairs.jsonl", f"--keep={keep}"])
