"""A small training run in a process of its own: `python -m tests.train_run --out DIR ...`.

Writes the loss of each step to DIR/losses.json and the final weights to DIR/weights.safetensors. Launched by tests that
need several processes, a SIGKILL, or a resume.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from safetensors.torch import save_file

from grmlight import PairDataModule, PrepareOptions, RewardModule
from grmlight.models import BackboneConfig, HeadConfig, gather
from grmlight.regularizers import ScoreL2, TextGeneration

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": 320,
}


class MeanOfEachPack(RewardModule):
    """The well-known mistake: each pack's mean, whatever its size."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        packs = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return loss * batch.groups_in_step / packs / batch.count_G.sum().clamp(min=1)


class Recorder(L.Callback):
    """Notes the loss of each step, and ends the process the hard way where asked."""

    def __init__(self, out: Path, kill_at: int) -> None:
        self.out, self.kill_at = out, kill_at
        self.losses: dict[int, float] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.kill_at and batch.micro_batch + 1 == trainer.accumulate_grad_batches:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, trainer, pl_module):
        if (whole := gather(pl_module.model)) is not None and trainer.is_global_zero:
            save_file(dict(whole.state_dict()), self.out / "weights.safetensors")


class StepLogger(CSVLogger):
    """Keeps the terms of each step as JSON lines, appended at once."""

    def __init__(self, out: Path) -> None:
        super().__init__(str(out), name="csv", version=0)
        self.path = out / "losses.jsonl"

    def log_metrics(self, metrics, step=None):
        if self.rank_zero() and "train/loss" in metrics:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step} | metrics) + "\n")

    @staticmethod
    def rank_zero() -> bool:
        return int(os.environ.get("LOCAL_RANK", "0")) == 0


def strategy(given: argparse.Namespace):
    if given.fsdp:
        return ModelParallelStrategy(given.devices, 1, process_group_backend="gloo")
    return DDPStrategy(process_group_backend="gloo") if given.devices > 1 else "auto"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--mean", action="store_true")
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--kill_at", type=int, default=-1)
    parser.add_argument("--log_every", type=int, default=1)
    parser.add_argument("--resume", default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    kind = MeanOfEachPack if given.mean else RewardModule
    module = kind(
        BackboneConfig(name="", pretrained=False, config=TINY | {"attention_dropout": given.dropout}),
        HeadConfig(kind="mlp", width=16, dropout=given.dropout),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )
    data = PairDataModule(
        train=given.data, tokenizer=given.tokenizer, prepare=PrepareOptions(max_length=200), pairs_per_step=6
    )
    checkpoints = ModelCheckpoint(given.out / "checkpoints", every_n_train_steps=3, save_last=True)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=given.devices,
        strategy=strategy(given),
        accumulate_grad_batches=given.accumulate,
        max_epochs=given.epochs,
        gradient_clip_val=1.0,
        log_every_n_steps=given.log_every,
        logger=StepLogger(given.out),
        callbacks=[TextGeneration(0.1), ScoreL2(0.01), checkpoints, Recorder(given.out, given.kill_at)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=given.resume)


if __name__ == "__main__":
    main()
