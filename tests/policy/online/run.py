"""Small online runs in processes of their own: see `tests.train_run`. The rewards are of text, the answers as asked."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
from pathlib import Path

import lightning.pytorch as L
import torch

from grmlight.models import BackboneConfig, LoraOptions
from grmlight.policy.online.buffer import RolloutFiles
from grmlight.policy.online.controllers import KlOptions
from grmlight.policy.online.mixing import WeightedSum
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.online.options import Update
from grmlight.policy.prompts import PromptLoader as ListLoader
from grmlight.policy.rewards import RewardSource
from grmlight.policy.sampler import SamplingOptions
from grmlight.training.checkpoints import Checkpoints
from tests.policy.online.parts import Canned, OneToken, PromptData, digits, small_backbone
from tests.train_run import Recorder, StepLogger, strategy


def length(prompt: str, response: str) -> float:
    return -len(response.split()) / 9


class Counting(Canned):
    """Appends a line for each call, so that a test sees what was sampled over all processes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def generate(self, prompts, options, seed, numbers=None):
        with self.path.open("a") as file:
            file.write(f"{len(prompts)}\n")
        return super().generate(prompts, options, seed, numbers)


class HeldOutData(PromptData):
    def val_dataloader(self):
        prompts = [str(number) for number in range(100, 111)]
        return ListLoader(prompts, [1] * 11, 4, None, self.trainer.global_rank, self.trainer.world_size)


def kill_inside(moment: str, count: int) -> None:
    """Let the process end itself: when an iteration's answers ("sampled") or rewards ("rewarded") were written."""
    true, times = RolloutFiles.write, itertools.count(1)

    def dying(self, iteration, key, kept):
        true(self, iteration, key, kept)
        if len(kept.rewards) == (2 if moment == "rewarded" else 0) and next(times) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    RolloutFiles.write = dying


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--advantage", default="gae")
    parser.add_argument("--critic", default="shared")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--held_out", action="store_true")
    parser.add_argument("--mixing", action="store_true")
    parser.add_argument("--guest", default=None, help="a base's folder and an adapter's, which shares the backbone")
    parser.add_argument("--own_answers", action="store_true", help="one token each, drawn from the policy")
    parser.add_argument("--tokens_per_pack", type=int, default=60)
    parser.add_argument("--kill_at", type=int, default=-1)
    parser.add_argument("--kill_in", default=None)
    parser.add_argument("--save_every", type=int, default=8)
    parser.add_argument("--resume", default=None)
    return parser.parse_args(arguments)


def make_module(given: argparse.Namespace) -> OnlineModule:
    backbone, rewards = small_backbone(lora=given.lora), [digits, length]
    if given.guest:
        base, adapter = given.guest.split(":")
        backbone = BackboneConfig(name=base, lora=LoraOptions(r=4, alpha=8, dropout=0.0))
        rewards = [RewardSource(adapter, "guest", share=True), length]
    module = OnlineModule(
        backbone,
        rewards,
        advantage=given.advantage,
        sampling=SamplingOptions(samples=4),
        kl=KlOptions(coefficient=0.1, target=0.5),
        update=Update(epochs=2, minibatches=2, tokens_per_pack=given.tokens_per_pack),
        mixing=WeightedSum({"length": 0.5}) if given.mixing else None,
        critic=given.critic,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-2 if given.lora else 1e-3),
        schedule="constant",
        warmup_ratio=0.0,
    )
    if given.own_answers:
        module.make_sampler = lambda: OneToken(module.model, 101)
    else:
        module.sampler = Counting(given.out / "calls.txt")
    return module


def make_trainer(given: argparse.Namespace) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=given.devices,
        strategy=strategy(given.devices, given.fsdp),
        max_epochs=1,
        log_every_n_steps=4,
        limit_val_batches=1.0 if given.held_out else 0,
        num_sanity_val_steps=0,
        logger=StepLogger(given.out),
        callbacks=[
            Checkpoints(given.out / "checkpoints", every_n_train_steps=given.save_every, save_last=True),
            Recorder(given.out, given.kill_at),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main(arguments: list[str]) -> None:
    given = parse(arguments)
    if given.kill_in:
        moment, count = given.kill_in.split(":")
        kill_inside(moment, int(count))
    trainer = make_trainer(given)
    prompts = [str(number) for number in range(5, 41)]
    data = (HeldOutData if given.held_out else PromptData)(prompts, 6)
    trainer.fit(make_module(given), data, ckpt_path=given.resume)
    held_out = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    (given.out / f"held_out-{trainer.global_rank}.json").write_text(json.dumps(held_out))
