"""The same pairs through grmlight, as a user trains: RewardModule, PairDataModule and Lightning's Trainer."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers.logger import Logger

from benchmarks.train.material import OPTIONS, Material, cache
from benchmarks.train.peers import ALPHA, BETA, CLIP, LEARNING_RATE, Steps, Variant, clock, differences
from grmlight import PairDataModule, RewardModule
from grmlight.models import BackboneConfig, HeadConfig, LoraOptions
from grmlight.regularizers import DirectPreference, Regularizer, TextGeneration


class Scored(RewardModule):
    """A RewardModule whose linear head begins with the material's weights."""

    def __init__(self, material: Material, **options: Any) -> None:
        super().__init__(**options)
        self.material = material

    def configure_model(self) -> None:
        """Build the model and set its head."""
        super().configure_model()
        head: Any = self.model.head.summary  # pyright: ignore[reportOptionalMemberAccess]
        with torch.no_grad():
            head.weight.copy_(self.material.score)
            head.bias.zero_()


class Ends(L.Callback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time and the loss."""
        self.losses.append(outputs["loss"].detach())
        self.ends.append(clock())


class _Last(Logger):
    """Keeps the last line that is logged."""

    name = version = None

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[str, float] = {}

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Leave them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep the line."""
        self.figures = metrics


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    """What TRL takes by default."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)


def fit(
    module: L.LightningModule,
    material: Material,
    steps: int,
    callbacks: Sequence[L.Callback] = (),
    precision: Any = "32-true",
    logger: Logger | bool = False,
) -> Steps:
    """Train by `Trainer.fit`, all the material's pairs in each step."""
    ends = Ends()
    data = PairDataModule(
        train=material.pairs, tokenizer=material.model, prepare=OPTIONS, pairs_per_step=len(material.ids)
    )
    with cache(material.folder), tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            default_root_dir=folder,
            accelerator="auto",
            devices=1,
            precision=precision,
            max_steps=steps,
            gradient_clip_val=CLIP,
            callbacks=[ends, *callbacks],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=logger,
        )
        trainer.fit(module, data)
    return Steps(differences(ends.ends), torch.stack(ends.losses).tolist())


def ours(
    regularizer: str = "",
    packing: Any = "auto",
    precision: Any = "32-true",
    lora: LoraOptions | None = None,
    dtype: Any = "float32",
) -> Variant:
    """A run of `Trainer.fit`; the regularizer is "", "sft" or "dpo" (without reference)."""

    def run(material: Material, steps: int) -> Steps:
        last = _Last()
        module = Scored(
            material,
            backbone=BackboneConfig(material.model, lora=lora, dtype=dtype),
            head=HeadConfig(kind="linear", dropout=0.0),
            packing=packing,
            optimizer=optimizer,
            schedule="constant",
            warmup_ratio=0.0,
        )
        found = fit(module, material, steps, _regularizers(regularizer), precision=precision, logger=last)
        return dataclasses.replace(found, figures=last.figures)

    return run


def _regularizers(name: str) -> list[Regularizer]:
    return {
        "": [],
        "sft": [TextGeneration(ALPHA, beta=BETA)],
        "dpo": [DirectPreference(ALPHA, beta=BETA, reference=False)],
    }[name]
