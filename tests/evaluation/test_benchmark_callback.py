"""Benchmarks in training: on one process, DDP and FSDP2, with every row once."""

import json
import random

import pytest

from grmlight.evaluation import Benchmarks
from grmlight.evaluation.command import evaluate_model
from tests.test_cli import QUICK, REPOSITORY, grmlight
from tests.test_training_runs import assert_same_losses, largest_difference, write_material
from tests.train_run import losses, train


@pytest.fixture(scope="module")
def material(tmp_path_factory, byte_tokenizer):
    """Pairs to train on, and 14 held-out ones of 5 prompts: a tie, and two beyond the longest length."""
    folder = tmp_path_factory.mktemp("material")
    given = write_material(folder, byte_tokenizer)
    draw = random.Random(1)
    rows = [
        {
            "prompt": f"why {number % 5}",
            "chosen": "so " * draw.randint(1, 20),
            "rejected": "no " * draw.randint(1, 20),
            "category": draw.choice("xy"),
        }
        for number in range(14)
    ]
    rows[3]["soft_label"] = 0.5
    rows[7]["chosen"] = rows[11]["rejected"] = "very long " * 60
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return given, [*given, "--benchmark", str(folder / "held_out.jsonl"), "--epochs", "1"]


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train(folder, *material[1])
    return folder


def evaluation(out):
    return json.loads((out / "csv" / "version_0" / "evaluation.json").read_text())


def test_a_run_keeps_the_newest_evaluation_and_logs_it(alone):
    found = evaluation(alone)
    assert found["step"] == 8
    assert [(row["benchmark"], row["category"]) for row in found["rows"]][-1] == ("held_out", "all")
    total = found["rows"][-1]
    assert total["n"] == 11 == sum(row["n"] for row in found["rows"][:-1])
    (read,) = found["inputs"]
    assert read["refused"] == {"tie": ["4"], "over_length": ["8", "12"]}
    assert (read["rows"], read["used"]) == (14, 11)
    assert "held_out   all" in (alone / "output-0.txt").read_text()
    logged = [json.loads(line) for line in (alone / "benchmarks.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [3, 6, 8]
    assert logged[-1]["benchmarks/held_out/all"] == total["accuracy"]
    assert {"benchmarks/held_out/x", "benchmarks/held_out/y"} < logged[0].keys()


def test_training_is_the_same_with_and_without(material, alone, tmp_path):
    train(tmp_path, *material[0], "--epochs", "1")
    assert losses(tmp_path) == losses(alone)
    assert largest_difference(tmp_path, alone) == 0


@pytest.mark.parametrize("strategy", [[], ["--fsdp"], ["--fsdp", "--padded"]], ids=["ddp", "fsdp2", "fsdp2-padded"])
def test_two_processes_find_what_one_finds(strategy, material, alone, tmp_path):
    train(tmp_path, *material[1], *strategy, ranks=2)
    assert_same_losses(tmp_path, alone)
    found, expected = evaluation(tmp_path), evaluation(alone)
    assert found["inputs"] == expected["inputs"]
    assert len(found["rows"]) == len(expected["rows"]) == 3
    for row, wanted in zip(found["rows"], expected["rows"], strict=True):
        for name, value in wanted.items():
            exact = isinstance(value, str | int) or name in ("accuracy", "low", "high") or name.startswith("ruler")
            assert row[name] == (value if exact else pytest.approx(value, abs=1e-3)), name
    (kept,) = tmp_path.rglob("evaluation-rows-held_out.json")
    (wanted,) = alone.rglob("evaluation-rows-held_out.json")
    assert kept.read_bytes() == wanted.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "there is nothing to evaluate on"),
        ({"benchmarks": ["hhh"], "every_n_steps": 0}, "every_n_steps must be at least 1"),
    ],
)
def test_settings_without_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Benchmarks(**arguments)


def test_it_works_in_yaml_on_the_embedded_world(tmp_path):
    append = tmp_path / "benchmarks.yaml"
    pairs = REPOSITORY / "grmlight/lab/assets/pairs/ood_topic.jsonl.gz"
    append.write_text(
        "trainer:\n  callbacks+:\n    - class_path: grmlight.evaluation.Benchmarks\n      init_args:\n"
        f"        pairs: {{topic: {pairs}}}\n        every_n_epochs: null\n        scoring: {{max_length: 512}}\n"
    )
    printed = grmlight("fit", *QUICK, "--config", append, "--trainer.limit_train_batches=2", cwd=tmp_path).stdout
    run = tmp_path / "runs/grm/version_0"
    found = json.loads((run / "evaluation.json").read_text())
    assert found["rows"][-1]["n"] == 500
    assert "topic: " in printed
    (again,) = evaluate_model(run, pairs=str(pairs))
    assert again.rows[-1].accuracy.value == pytest.approx(found["rows"][-1]["accuracy"], abs=0.003)
