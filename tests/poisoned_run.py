"""A small run with numbers that are not finite, alone or in processes: `python -m tests.poisoned_run --out DIR ...`.

Writes what was logged to DIR/lines.jsonl, and the final weights to DIR/weights.safetensors.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from safetensors.torch import save_file

from grmlight import PairDataModule, RewardModule
from grmlight._data_rs import epoch_order
from grmlight.models import HeadConfig, gather
from grmlight.regularizers import Regularizer
from tests.tiny_models import tiny_backbone
from tests.train_run import strategy

PAIRS, PAIRS_PER_STEP = 22, 4
STEPS = 12
BAD_ROWS = {3, 11}


def bad_steps() -> set[int]:
    """The steps, from 0, that hold a bad row, from the order alone."""
    steps = []
    for epoch in range(2):
        rows = [group + 1 for group in epoch_order(PAIRS, 0, epoch).tolist()]
        steps += [set(rows[start : start + PAIRS_PER_STEP]) for start in range(0, PAIRS, PAIRS_PER_STEP)]
    return {step for step, rows in enumerate(steps) if rows & BAD_ROWS}


def write_pairs(path: Path) -> None:
    """Pairs of unequal lengths; row 3 is the third."""
    rows = [
        {"prompt": "why " * (1 + i % 5) + str(i), "chosen": "so " * (1 + i % 4), "rejected": "not " * (1 + i * i % 7)}
        for i in range(PAIRS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Poison(Regularizer):
    """A penalty that is finite but on some rows: "nan", "inf", or "gradient", whose value is 0."""

    def __init__(self, kind: str) -> None:
        super().__init__(0.1, mixing="additive", name="poison")
        self.kind = kind

    def penalty(self, outputs, batch):
        value_G = batch.mean_by_group((outputs.rewards_N[batch.better_C] - 0.3).square())
        bad_G = torch.isin(batch.row_C, torch.tensor(sorted(BAD_ROWS)))
        if self.kind == "gradient":
            return value_G + (value_G * (~bad_G)).sqrt() * bad_G
        wrong_G = torch.full_like(value_G, float(self.kind if self.kind in ("nan", "inf") else 1.0))
        return value_G * wrong_G.where(bad_G, torch.ones(()))


class Overflow(L.Callback):
    """Blows the reward head up for some steps."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps
        self.kept: torch.Tensor | None = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in self.steps and self.kept is None:
            weight = pl_module.model.head.summary[-1].weight.data
            self.kept = weight.clone()
            weight.mul_(1e38).mul_(1e38)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.kept is not None and batch.micro_batch + 1 == batch.packs:
            pl_module.model.head.summary[-1].weight.data.copy_(self.kept)
            self.kept = None


class WithoutSteps(torch.optim.AdamW):
    """The reference: its step does nothing at all where it shall not."""

    def __init__(self, parameters, lr, without):
        super().__init__(parameters, lr=lr, weight_decay=0.1)
        self.without, self.done = without, 0

    def step(self, closure=None):
        self.done += 1
        if self.done - 1 not in self.without:
            return super().step(closure)
        with torch.enable_grad():
            return closure()


class Lines(Logger):
    """Keeps what is logged as JSON lines."""

    name = version = None

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.path = out / "lines.jsonl"

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if "speed/memory_gb" in metrics and os.environ.get("LOCAL_RANK", "0") == "0":
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step} | metrics) + "\n")


class Weights(L.Callback):
    """Writes the final weights."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_train_end(self, trainer, pl_module):
        if (whole := gather(pl_module.model)) is not None and trainer.is_global_zero:
            save_file(dict(whole.state_dict()), self.out / "weights.safetensors")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--kind", default="none")
    parser.add_argument("--do", default="stop")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--log_every", type=int, default=1)
    parser.add_argument("--checkpoints", action="store_true")
    parser.add_argument("--fsdp", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    reference = given.do == "reference"
    without = bad_steps() if reference else set()
    module = RewardModule(
        tiny_backbone("llama", config={"vocab_size": 320}),
        HeadConfig(width=16, dropout=0.0),
        optimizer=lambda parameters: WithoutSteps(parameters, given.lr, without),
        on_nonfinite="stop" if reference else given.do,
    )
    callbacks = [Poison("none" if reference else given.kind), Weights(given.out)]
    if given.kind == "overflow" and not reference:
        callbacks.append(Overflow(bad_steps()))
    if given.checkpoints:
        callbacks.append(ModelCheckpoint(given.out / "checkpoints", every_n_train_steps=1, save_top_k=-1))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=given.devices,
        strategy=strategy(given.devices, given.fsdp),
        accumulate_grad_batches=given.accumulate,
        max_epochs=2,
        gradient_clip_val=given.clip or None,
        log_every_n_steps=given.log_every,
        logger=Lines(given.out),
        callbacks=callbacks,
        limit_val_batches=0,
        enable_checkpointing=given.checkpoints,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, PairDataModule(train=given.data, tokenizer=given.tokenizer, pairs_per_step=PAIRS_PER_STEP))


if __name__ == "__main__":
    main()
