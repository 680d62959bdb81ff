"""Small guarded runs in processes of their own: see `tests.train_run`, and `tests.policy.guards.world` for the task."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import lightning.pytorch as L
import torch

from grmlight import PairDataModule, PolicyModule
from grmlight.lab import world_files
from grmlight.models import BackboneConfig, LoraOptions
from grmlight.policy.guards import KLBudget, LengthMonitor, ProxyGoldGap, RepetitionMonitor, SampleTable
from grmlight.policy.objectives import AlignmentObjective
from grmlight.training.checkpoints import Checkpoints
from tests.policy.guards.world import LM, ONCE, measurement
from tests.train_run import Recorder, StepLogger, strategy


class Guards(L.Callback):
    """Writes what the guards have come to."""

    def __init__(self, out: Path, guards: list[L.Callback]) -> None:
        self.out, self.guards = out, guards

    def on_train_end(self, trainer, pl_module):
        states = {type(each).__name__: each.state_dict() for each in self.guards}
        found = {"step": trainer.global_step, "states": states}
        (self.out / f"guards-{trainer.global_rank}.json").write_text(json.dumps(found))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--gold", default=ONCE)
    parser.add_argument("--resume", default=None)
    given = parser.parse_args(arguments)
    module = PolicyModule(
        BackboneConfig(name=LM, lora=LoraOptions(r=8, alpha=16, dropout=0.0) if given.lora else None),
        AlignmentObjective("dpo", beta=0.05),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3 if given.lora else 1e-3),
        schedule="constant",
        warmup_ratio=0.0,
    )
    guards = [
        KLBudget(1e6),
        ProxyGoldGap(patience=1, action="rollback"),
        LengthMonitor(max_growth=99, max_cut=1),
        RepetitionMonitor(min_distinct=0, max_repeat=1),
        SampleTable(prompts=2),
    ]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=given.devices,
        strategy=strategy(given.devices, given.fsdp),
        max_steps=24,
        max_epochs=-1,
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=StepLogger(given.out),
        callbacks=[
            measurement(gold=given.gold, prompts=15),
            *guards,
            Checkpoints(given.out / "checkpoints", every_n_train_steps=100, save_last=True),
            Recorder(given.out, -1),
            Guards(given.out, guards),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    tokenizer = str(world_files().tokenizer)
    trainer.fit(module, PairDataModule(train=given.data, tokenizer=tokenizer, pairs_per_step=8), ckpt_path=given.resume)
