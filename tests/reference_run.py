"""A small DPO run of a fully trained model: `python -m tests.reference_run --out DIR ...`.

Writes the terms of each step to DIR/losses.jsonl and the last weights to DIR/weights.safetensors. It can end itself by
SIGKILL in the pass that computes the reference log-probs, while it writes them, or after a step of the training.
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
from lightning.pytorch.loggers.logger import Logger
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from grmlight import PairDataModule, RewardModule
from grmlight.models import HeadConfig, gather
from grmlight.regularizers import DirectPreference
from tests.tiny_models import tiny_backbone
from tests.train_run import strategy


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Mortal(RewardModule):
    """Dies at one of the model's first forwards, all of which belong to the pass."""

    last_forward = 0

    def configure_model(self):
        super().configure_model()
        assert self.device_mesh is None or all(isinstance(each, DTensor) for each in self.parameters())

    def _build(self):
        model = super()._build()
        forwards = 0

        def count(*_):
            nonlocal forwards
            forwards += 1
            if forwards == self.last_forward:
                end()

        model.register_forward_pre_hook(count)
        return model


class Watcher(L.Callback):
    """Dies after a step where asked, and keeps the final weights."""

    def __init__(self, out: Path, last_step: int) -> None:
        self.out, self.last_step = out, last_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.last_step and batch.micro_batch + 1 == trainer.accumulate_grad_batches:
            end()

    def on_train_end(self, trainer, pl_module):
        if (whole := gather(pl_module.model)) is not None and trainer.is_global_zero:
            weights = {name: value.contiguous() for name, value in whole.state_dict().items()}
            save_file(weights, self.out / "weights.safetensors")


class Lines(Logger):
    """Appends the terms of each step at once."""

    name = version = None

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if os.environ.get("LOCAL_RANK", "0") == "0" and "train/loss" in metrics:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step} | metrics) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--reference", default="store")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--die_at_forward", type=int, default=0)
    parser.add_argument("--die_writing", action="store_true")
    parser.add_argument("--die_at_step", type=int, default=-1)
    parser.add_argument("--resume", default=None)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.die_writing:
        rename = Path.replace
        Path.replace = lambda path, target: end() if "reference_logps" in path.name else rename(path, target)
    module = Mortal(
        tiny_backbone(config={"vocab_size": 320}),
        HeadConfig(width=16, dropout=0.0),
        reference=given.reference,
        schedule="constant",
        warmup_ratio=0.0,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )
    module.last_forward = given.die_at_forward
    checkpoints = ModelCheckpoint(given.out / "checkpoints", every_n_train_steps=3, save_last=True)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=given.devices,
        strategy=strategy(given.devices, given.fsdp),
        precision=given.precision,
        # Three pairs a step in up to four packs: some shares are always empty.
        accumulate_grad_batches=2,
        max_steps=given.steps,
        max_epochs=-1,
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=Lines(given.out / "losses.jsonl"),
        callbacks=[DirectPreference(0.5), checkpoints, Watcher(given.out, given.die_at_step)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = PairDataModule(train=given.data, tokenizer=given.tokenizer, pairs_per_step=3)
    trainer.fit(module, data, ckpt_path=given.resume)


if __name__ == "__main__":
    main()
