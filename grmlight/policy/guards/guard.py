"""Guard: what the guards share. They sample nothing themselves: all of them look at one measurement of `SampledKL`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from grmlight.policy.kl import Measured, SampledKL
from grmlight.training.sharding import UNSTEPPED


class Guard(Callback):
    """Base of the guards: finds the run's `SampledKL` and is shown each of its measurements, the same on every rank."""

    needs: Sequence[str] = ()
    """Rewards that `SampledKL` must have."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach to the measurements.

        Errors: ValueError in one line if there is nothing that measures, several, or one without a reward.
        """
        if stage != "fit":
            return
        name = type(self).__name__
        found = [each for each in trainer.callbacks if isinstance(each, SampledKL)]  # pyright: ignore[reportAttributeAccessIssue]
        if len(found) != 1:
            raise ValueError(f"{name}: looks at what SampledKL measures, and there are {len(found)} of it; add one")
        for reward in self.needs:
            if reward not in found[0].rewards:
                raise ValueError(f"{name}: compares proxy and gold; give SampledKL's {reward} a reward")
        if self not in found[0].watchers:
            found[0].watchers.append(self)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before the first step say that no parameter has an optimizer state yet."""
        if trainer.global_step == 0:
            learning = (name for name, parameter in pl_module.named_parameters() if parameter.requires_grad)
            checkpoint[UNSTEPPED] = list(learning)

    def look(self, trainer: Trainer, prompts: Sequence[Measured]) -> None:
        """Take in a measurement."""

    def keep(self, trainer: Trainer) -> None:
        """Write checkpoints, if any."""

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop, or roll back, if need be."""

    def say(self, trainer: Trainer, text: str) -> None:
        """One line of the run's output, under the guard's name."""
        rank_zero_info(f"{type(self).__name__}: step {trainer.global_step}: {text}")

    def warn(self, trainer: Trainer, text: str) -> None:
        """A warning under the guard's name."""
        rank_zero_warn(f"{type(self).__name__}: step {trainer.global_step}: {text}")

    def record(self, trainer: Trainer, figures: dict[str, float]) -> None:
        """Hand figures to the loggers, as `guard/NAME`."""
        named = {f"guard/{name}": value for name, value in figures.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})
