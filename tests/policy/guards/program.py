"""Small guarded runs in processes of their own: see `tests.train_run`. A policy learns to say one letter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import lightning.pytorch as L
import torch

from grmlight import PairDataModule, PolicyModule
from grmlight.policy.guards import KLBudget, LengthMonitor, ProxyGoldGap, RepetitionMonitor, SampleTable
from grmlight.policy.kl import SampledKL
from grmlight.policy.objectives import AlignmentObjective
from grmlight.training.checkpoints import Checkpoints
from tests.policy.online.parts import small_backbone
from tests.train_run import Recorder, StepLogger, strategy

LETTER = "e"


def letters(prompt: str, response: str) -> float:
    return float(response.count(LETTER))


def few(prompt: str, response: str) -> float:
    """Two are best."""
    return -abs(response.count(LETTER) - 2.0)


def write_pairs(folder: Path) -> Path:
    rows = [
        {"prompt": f"say {number}", "chosen": LETTER * (6 + number % 3), "rejected": "dog house"[: 4 + number % 5]}
        for number in range(24)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--lora", action="store_true")
    given = parser.parse_args(arguments)
    module = PolicyModule(
        small_backbone(lora=given.lora),
        AlignmentObjective("dpo", beta=0.05),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-2 if given.lora else 2e-3),
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
    kl = SampledKL(
        2,
        prompts=7,
        max_new_tokens=10,
        proxy="tests.policy.guards.program.letters",
        gold="tests.policy.guards.program.few",
        limit=1e9,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=given.devices,
        strategy=strategy(given.devices, given.fsdp),
        max_steps=40,
        max_epochs=-1,
        log_every_n_steps=1,
        logger=StepLogger(given.out),
        callbacks=[
            kl,
            *guards,
            Checkpoints(given.out / "checkpoints", every_n_train_steps=100, save_last=True),
            Recorder(given.out, -1),
            Guards(given.out, guards),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, PairDataModule(train=given.data, tokenizer=given.tokenizer, pairs_per_step=6))
