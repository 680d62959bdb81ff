"""What is right of each row: counted as the accuracy is, keyed by the prompt, whole on one process and on two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grmlight.data.options import PrepareOptions
from grmlight.data.prepare import prepare
from grmlight.evaluation.metrics import PairFigures
from grmlight.evaluation.row_sums import counts_of, row_sums
from grmlight.evaluation.rows import Row, Rows, prompt_keys, read_rows, rows_of, write_rows
from tests.batches import outputs_of, pair_batch

REPOSITORY = Path(__file__).parents[2]
QUICK = [
    "--config",
    str(REPOSITORY / "configs/grm.yaml"),
    "--trainer.enable_progress_bar=false",
    "--data.init_args.pairs=48",
]


def test_counts_are_those_of_the_accuracy():
    rewards = [1.0, 0.5, 0.1, 0.2, 0.3, 0.3, 2.0, 1.0, 5.0, 1.0, 9.0, 1.0]
    labels, counts = [1.0, 0.9, 0.8, 0.2, 0.5, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    batch, outputs = pair_batch(6, labels=labels, counts=counts), outputs_of(rewards)
    found = counts_of(row_sums(outputs.rewards_N, batch))
    # Right, wrong, equal, the labeled side is the other; a tie and a filler do not count.
    assert found.tolist() == [[1, 1, 1], [2, 0, 1], [3, 0.5, 1], [4, 0, 1], [5, 0, 0], [6, 0, 0]]
    metric = PairFigures()
    metric.update(outputs, batch)
    _, right, pairs = found.sum(0).tolist()
    assert right / pairs == pytest.approx(metric.compute()["accuracy"].item(), rel=1e-6)


@pytest.fixture(scope="module")
def store(byte_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    rows = [
        {"id": "a", "prompt": "why red", "chosen": "the cat said so", "rejected": "the cat said no", "category": "x"},
        {"id": "b", "prompt": "why red", "chosen": "a house", "rejected": "green"},
        {"id": "c", "prompt": "why green", "chosen": "the cat said so", "rejected": "the cat said no"},
        {"id": "d", "prompt": [{"role": "user", "content": "why red"}], "chosen": "yes", "rejected": "no"},
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare(str(folder / "pairs.jsonl"), str(byte_tokenizer), PrepareOptions(), folder / "store").store


def test_rows_of_one_prompt_share_a_key_and_no_others(store):
    keys = prompt_keys(store)
    assert keys[1] == keys[2] == keys[4] != keys[3]


def test_whole_texts_without_a_shared_beginning_are_prompts_of_their_own(byte_tokenizer, tmp_path):
    rows = [{"chosen": "the cat", "rejected": "a dog"}, {"chosen": "the dog", "rejected": "a cat"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = PrepareOptions(text_rows="plain")
    store = prepare(str(tmp_path / "pairs.jsonl"), str(byte_tokenizer), options, tmp_path / "store").store
    assert prompt_keys(store) == {1: "row 1", 2: "row 2"}


def test_rows_add_up_their_comparisons_and_leave_ties_out(store):
    counts = torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0], [2.0, 0.5, 1.0], [1.0, 0.0, 1.0]])
    first, second = rows_of(counts, store, prompt_keys(store))
    assert (first.row, first.id, first.right, first.pairs, first.category) == ("1", "a", 1.0, 2.0, "x")
    assert (second.row, second.id, second.right, second.pairs, second.category) == ("2", "b", 0.5, 1.0, "")
    assert first.prompt == second.prompt


def test_a_file_of_rows_is_read_as_it_was_written(tmp_path):
    rows = Rows("pärs.jsonl", "f1", [Row("2", "p", 0.5, 2.0, "x", "ü"), Row("1", "p", 1.0)])
    write_rows(tmp_path / "rows-a.json", rows)
    again = read_rows(tmp_path / "rows-a.json")
    assert (again.source, again.fingerprint) == (rows.source, rows.fingerprint)
    assert again.rows == rows.rows
    assert len((tmp_path / "rows-a.json").read_text().splitlines()) == 4
    for right, pairs in ((1.0, 0.0), ("1", 1.0), (float("nan"), 1.0)):
        found = {"row": "7", "prompt": "p", "right": right, "pairs": pairs}
        (tmp_path / "rows-c.json").write_text(json.dumps({"source": "x", "fingerprint": "f", "rows": [found]}))
        with pytest.raises(ValueError, match=r"rows-c\.json: is no file of rows .row 7: "):
            read_rows(tmp_path / "rows-c.json")
    (tmp_path / "rows-b.json").write_text('{"source": "x"}')
    with pytest.raises(ValueError, match=r"rows-b\.json: is no file of rows .*evaluate the run again"):
        read_rows(tmp_path / "rows-b.json")


def test_two_processes_find_the_rows_of_one(tmp_path):
    """Steps of 499 and 1 pairs: the second rank has no row of the last, and no row is lost or counted twice."""
    for devices, strategy in (("1", "auto"), ("2", "ddp")):
        done = subprocess.run(
            [sys.executable, "-m", "grmlight", "validate", *QUICK, "--trainer.accelerator=cpu",
             f"--trainer.devices={devices}", f"--trainer.strategy={strategy}", "--data.init_args.eval_pairs=499"],
            cwd=tmp_path,
            env=os.environ | {"GRMLIGHT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    alone, together = (tmp_path / f"runs/grm/version_{each}" for each in (0, 1))
    results = json.loads((together / "results.json").read_text())
    for name in ("id", "ood_topic", "ood_template", "ood_all"):
        rows = read_rows(together / f"rows-{name}.json").rows
        assert rows == read_rows(alone / f"rows-{name}.json").rows
        assert [row.row for row in rows] == list(map(str, range(1, 501)))
        assert results[name]["prompts"] == len({row.prompt for row in rows})
        assert results[name]["low"] < results[name]["accuracy"] < results[name]["high"]
        alike = json.loads((alone / "results.json").read_text())[name]
        assert results[name] == pytest.approx(alike, rel=1e-4, abs=1e-4)
        assert sum(row.right for row in rows) / sum(row.pairs for row in rows) == pytest.approx(
            results[name]["accuracy"]
        )
    costs = json.loads((together / "costs.json").read_text())
    assert costs["scoring_passes"] == 1
    assert costs["trainable_parameters"] > 100_000
    assert "train_seconds" not in costs
