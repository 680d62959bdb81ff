"""The program under torchrun: the shipped FSDP2 configuration on CPU processes, its checkpoints and its model."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grmlight.export import export

REPOSITORY = Path(__file__).parent.parent


def torchrun(ranks, cwd, *arguments):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["torch.distributed.run", "--nproc-per-node", ranks, "--master-addr", "127.0.0.1", "--master-port", port]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, launcher), "-m", "grmlight", "fit", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"GRMLIGHT_CACHE": str(cwd / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    with (cwd / "runs/grm/version_0/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return {int(row["step"]): float(row["train/loss"]) for row in rows}


def arguments(ranks):
    return [
        *("--config", REPOSITORY / "configs/grm.yaml", "--config", REPOSITORY / "configs/fsdp.yaml"),
        "--trainer.accelerator=cpu", f"--trainer.devices={ranks}", "--trainer.precision=32-true",
        f"--trainer.strategy.init_args.data_parallel_size={ranks}",
        "--trainer.strategy.init_args.process_group_backend=gloo",
        "--data.init_args.pairs=48", "--data.init_args.pairs_per_step=8", "--model.init_args.head.dropout=0",
        "--trainer.max_epochs=1", "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1", "--checkpoint.every_n_train_steps=3",
    ]  # fmt: skip


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_torchrun_with_the_shipped_configuration(ranks, tmp_path):
    losses = torchrun(ranks, tmp_path, *arguments(ranks))
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    run = tmp_path / "runs/grm/version_0"
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert len(list((run / "checkpoints/last.ckpt").glob("*.distcp"))) == ranks
    export(run / "checkpoints/last.ckpt", tmp_path / "exported")
    trained, exported = (load_file(each / "model.safetensors") for each in (run / "model", tmp_path / "exported"))
    assert all(torch.equal(tensor, exported[name]) for name, tensor in trained.items())
    again = tmp_path / "again"
    again.mkdir()
    alone = ["--trainer.max_epochs=2", "--ckpt_path", run]
    # The checkpoint is written before its step is logged.
    assert min(torchrun(1, again, *arguments(1), *alone)) == 6
