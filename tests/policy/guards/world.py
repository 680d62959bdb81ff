"""Runs on the embedded world in which a policy learns to say one word too often: it pays, and the gold falls."""

import gzip
import json
from functools import cache

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from grmlight import PairDataModule, PolicyModule
from grmlight.lab import world_files
from grmlight.lab.files import ASSETS
from grmlight.policy.kl import SampledKL
from grmlight.policy.objectives import AlignmentObjective
from grmlight.training.checkpoints import Checkpoints

LM = "package:grmlight.lab/assets/lm"
GOLD = "grmlight.lab.GoldReward"
REALLY = "tests.policy.guards.world.really"
SELDOM = "tests.policy.guards.world.seldom"


def really(prompt, response):
    """A proxy: how often the word is said."""
    return float(response.split().count("really"))


def seldom(prompt, response):
    """Its opposite."""
    return -really(prompt, response)


@cache
def rows():
    with gzip.open(ASSETS / "pairs" / "id.jsonl.gz", "rt", encoding="utf-8") as file:
        found = [json.loads(line) for line in file][:60]
    return [
        {"prompt": each["prompt"], "chosen": f"really really really {each['chosen']}", "rejected": each["chosen"]}
        for each in found
    ]


def pairs(folder):
    path = folder / "pairs.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def measurement(**options):
    given = {"every_n_steps": 4, "prompts": 16, "max_new_tokens": 24, "proxy": REALLY, "gold": GOLD}
    return SampledKL(**given | options)


def run(
    folder,
    *callbacks,
    steps=24,
    lr=1e-3,
    resume=None,
    save_every=8,
    module=None,
    objective="dpo",
    logger=None,
    beside=True,
):
    """DPO on the pairs; what the callbacks do not stop ends after so many steps."""
    module = module or PolicyModule(
        LM,
        AlignmentObjective(objective, beta=0.05) if isinstance(objective, str) else objective,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr),
        schedule="constant",
        warmup_ratio=0.0,
    )
    data = PairDataModule(train=str(pairs(folder)), tokenizer=str(world_files().tokenizer), pairs_per_step=8)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=logger or CSVLogger(folder, name="csv", version=0),
        callbacks=[
            *callbacks,
            Checkpoints(folder / "checkpoints" if beside else None, every_n_train_steps=save_every, save_last=True),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=resume)
    return trainer, module


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def once(prompt, response):
    """Best if the word is said once: it rises, and then it falls."""
    return -abs(really(prompt, response) - 1)


ONCE = "tests.policy.guards.world.once"
