"""The program as users run it: commands in processes of their own, on the embedded world and on files."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grmlight.cli import main

REPOSITORY = Path(__file__).parent.parent
QUICK = [
    "--config", str(REPOSITORY / "configs/grm.yaml"), "--data.init_args.pairs=48", "--trainer.max_epochs=1",
    "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1",
]  # fmt: skip

OWN_REGULARIZER = '''
from grmlight.regularizers import Regularizer


class Spread(Regularizer):
    """Punish the distance between a pair's rewards."""

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight, mixing="additive", name="spread")

    def penalty(self, outputs, batch):
        better_C, worse_C = outputs.rewards_N[batch.better_C], outputs.rewards_N[batch.worse_C]
        return batch.mean_by_group((better_C - worse_C).square())
'''


def grmlight(*arguments, cwd, expect=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "grmlight", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"GRMLIGHT_CACHE": str(cwd / "cache"), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run on the embedded world, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, grmlight("fit", *QUICK, cwd=folder).stdout


def test_fit_prints_pairs_accuracy_and_how_to_score(trained):
    folder, printed = trained
    assert "pairs read" in printed
    assert "refused" in printed
    for name in ("id", "ood_topic", "ood_template", "ood_all"):
        assert f"{name} " in printed
    assert "95% interval" in printed
    assert "grmlight score runs/grm/version_0/model" in printed


def test_a_run_leaves_model_reports_logs_and_a_picture(trained):
    run = trained[0] / "runs/grm/version_0"
    names = {path.name for path in run.iterdir()}
    assert {"model", "data.json", "results.json", "metrics.csv", "learning_curve.png", "config.yaml"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert [path.name for path in (trained[0] / "runs/grm").iterdir()] == ["version_0"]
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"train/loss", "train/preference", "train/text_generation", "val/id/accuracy"} <= rows[0].keys()


def test_score_writes_the_same_bytes_twice_and_does_not_depend_on_the_batch(trained, tmp_path):
    folder = trained[0]
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"id": "x", "prompt": "tell two boats color", "chosen": "ferry red , canoe blue", "rejected": "ferry red"},
        {"prompt": "list color of two fruits", "chosen": "lime white", "rejected": "lime white"},
        {"prompt": "tell one fruits color excited", "chosen": "lime white !", "rejected": "so lime"},
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = folder / "runs/grm/version_0"
    for name, size in (("a", 64), ("b", 64), ("c", 1)):
        done = grmlight("score", run, pairs, "--out", tmp_path / name, "--pairs_per_batch", size, cwd=tmp_path)
        assert "3 pairs read, 2 used, 1 refused" in done.stdout
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    alone, together = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in "ca")
    assert [record["row"] for record in together] == [1, 3]
    assert [record["id"] for record in together] == ["x", "3"]
    for left, right in zip(alone, together, strict=True):
        assert left["chosen"] == pytest.approx(right["chosen"], abs=1e-5)
        assert right["margin"] == right["chosen"] - right["rejected"]


def test_validate_test_and_predict_work(trained, tmp_path):
    last = trained[0] / "runs/grm/version_0/checkpoints/last.ckpt"
    for command in ("validate", "test"):
        assert "95% interval" in grmlight(command, *QUICK, "--ckpt_path", last, cwd=tmp_path).stdout
    printed = grmlight("predict", *QUICK, "--trainer.limit_predict_batches=1", "--ckpt_path", last, cwd=tmp_path).stdout
    assert "predictions-id.jsonl" in printed


def test_a_run_goes_on_and_is_exported(trained, tmp_path):
    run = trained[0] / "runs/grm/version_0"
    grmlight("fit", *QUICK, "--trainer.max_epochs=2", "--ckpt_path", run, cwd=tmp_path)
    with (tmp_path / "runs/grm/version_0/metrics.csv").open() as file:
        assert next(csv.DictReader(file))["step"] == "4"
    printed = grmlight("export", run / "checkpoints/last.ckpt", "--out", tmp_path / "exported", cwd=tmp_path).stdout
    assert "model: " in printed
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {
        path.name for path in (run / "model").iterdir()
    }


def test_a_refused_resume_leaves_no_run_directory(trained, tmp_path):
    last = trained[0] / "runs/grm/version_0/checkpoints/last.ckpt"
    refused = ("--model.init_args.head.width=8", "of another model"), ("--data.init_args.seed=7", "seed=0")
    for other, message in refused:
        done = grmlight("fit", *QUICK, "--trainer.max_epochs=2", "--ckpt_path", last, other, cwd=tmp_path, expect=1)
        assert message in done.stderr.splitlines()[-1]
        assert not (tmp_path / "runs").exists()


def test_a_regularizer_of_ones_own_works_in_yaml(tmp_path):
    (tmp_path / "mine.py").write_text(OWN_REGULARIZER)
    append = tmp_path / "mine.yaml"
    append.write_text("trainer:\n  callbacks+:\n    - class_path: mine.Spread\n      init_args: {weight: 0.5}\n")
    grmlight(
        "fit", *QUICK, "--config", append, "--trainer.limit_train_batches=2", cwd=tmp_path, PYTHONPATH=str(tmp_path)
    )
    header = (tmp_path / "runs/grm/version_0/metrics.csv").read_text().splitlines()[0]
    assert "train/spread" in header
    assert "train/text_generation" in header


@pytest.mark.shared_data
def test_prepare_writes_a_store_and_a_report(shared_data, byte_tokenizer, tmp_path):
    out = tmp_path / "store"
    grmlight(
        "prepare",
        shared_data / "hh_defects_raw.jsonl",
        "--tokenizer",
        byte_tokenizer,
        "--out",
        tmp_path / "none",
        cwd=tmp_path,
        expect=1,
    )
    grmlight("prepare", shared_data / "hh_raw_sample.jsonl", "--tokenizer", byte_tokenizer, "--out", out, cwd=tmp_path)
    report = json.loads((out / "report.json").read_text())
    refused = sum(len(rows) for rows in report["refused"].values())
    assert report["rows"] == 250 == report["used"] + refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "'train' is no command"),
        (["fit", *QUICK, "--data.init_args.pairs=many"], "pairs"),
        (["fit", *QUICK, "--model.init_args.backbone=no/such/folder"], "no directory"),
        (["fit", *QUICK, "--model.init_args.label_smoothing=0.7"], "label_smoothing"),
        (["fit", *QUICK, "--config", "twice.yaml"], "two callbacks are a TextGeneration of one name"),
        (["fit", *QUICK, "--trainer.strategy", "fsdp"], "configs/fsdp.yaml"),
        (["fit", *QUICK, "--trainer.strategy", "fsdp_cpu_offload"], "configs/fsdp.yaml"),
        (["fit", *QUICK, "--trainer.strategy.class_path", "FSDPStrategy"], "configs/fsdp.yaml"),
        (["fit", *QUICK, "--trainer.precision", "bf16-true"], "set trainer.precision to bf16-mixed"),
        (["fit", *QUICK, "--trainer.accumulate_grad_batches", "0"], "a step has at least 1 pack"),
        (["fit", *QUICK, "--trainer.devices", "0"], "Trainer(devices="),
        (["fit", *QUICK, "--ckpt_path", "nowhere.ckpt"], "there is no such file"),
        (["fit", *QUICK, "--ckpt_path", "last"], "needs checkpoint.dirpath"),
        (["export", "nowhere", "--out", "x"], "there is no such file"),
        (["score", "nowhere", "pairs.jsonl", "--out", "x"], "holds no model"),
        (["prepare", "missing.jsonl", "--tokenizer", "TOKENIZER", "--out", "store"], "missing.jsonl"),
        (["prepare", "columns.jsonl", "--tokenizer", "TOKENIZER", "--out", "store"], "question"),
        (["prepare", "columns.jsonl", "--tokenizer", "/none", "--out", "store"], "tokenizer"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_mistake_ends_with_one_line_that_names_it(arguments, message, byte_tokenizer, tmp_path, monkeypatch):
    (tmp_path / "columns.jsonl").write_text('{"question": "why", "answer": "so"}\n')
    twice = "trainer:\n  callbacks+:\n    - class_path: grmlight.regularizers.TextGeneration\n"
    (tmp_path / "twice.yaml").write_text(twice)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as end:
        main([str(byte_tokenizer) if argument == "TOKENIZER" else argument for argument in arguments])
    assert message in str(end.value)
    assert "\n" not in str(end.value)
    assert not (tmp_path / "runs").exists()


def test_the_keyboard_ends_a_command_with_one_line(tmp_path):
    (tmp_path / "interrupted.py").write_text(
        "import os, signal, time\n\ndef reward(prompt, response):\n"
        # A process in the background is begun with the signal ignored.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
    )
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path)])
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "grmlight",
            "relabel",
            "pairs.jsonl",
            "--reward",
            "interrupted.reward",
            "--out",
            "o.jsonl",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 130
    assert ran.stderr.strip() == "grmlight relabel: stopped by the keyboard; what was written stays"
