"""GroupModule: what every LightningModule of the project shares.

Notable decisions:

- The module pulls: regularizers register in `setup`, the module asks one forward for the signals they need, reads
  their penalties and adds them. No hook edits a loss.
- A step is exact in groups: see `grmlight.objective`.
- Dropout is seeded at each micro-batch from (seed, step, micro-batch, rank), so no generator state is saved.
- Training terms stay on the device and are flushed every `log_every_n_steps`; nothing waits for the device in a step.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import lightning.pytorch as L
import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from grmlight.data.batch import GroupBatch
from grmlight.models.outputs import Outputs, Signal
from grmlight.objective import Objective, Penalty, objective
from grmlight.regularizers.base import Regularizer

Schedule = Literal["cosine", "linear", "constant"]


def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
    """AdamW as in the GRM paper: learning rate 1e-5, no weight decay."""
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)


class GroupModule(L.LightningModule):
    """Base of the modules that train on packs of groups. Subclasses build the model and give the preference loss.

    Args:
        optimizer: makes the optimizer from the trainable parameters.
        schedule: course of the learning rate after the warm-up.
        warmup_ratio: share of all optimizer steps in which the learning rate rises from 0.
        seed: seed of newly made weights and of dropout.
    """

    model: torch.nn.Module | None

    def __init__(
        self,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: Schedule = "cosine",
        warmup_ratio: float = 0.03,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_ratio < 1:
            raise ValueError(f"warmup_ratio must be at least 0 and below 1, got {warmup_ratio}")
        self.optimizer = optimizer
        self.schedule: Schedule = schedule
        self.warmup_ratio = warmup_ratio
        self.seed = seed
        self.model = None
        self._regularizers: list[Regularizer] = []
        self._meter: dict[str, Tensor] = {}
        self._steps_metered = 0
        self._loader_state: dict[str, Any] | None = None

    @abstractmethod
    def preference(self, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, " G"]:
        """The preference loss of each group."""

    def add_regularizer(self, regularizer: Regularizer) -> None:
        """Take in a regularizer; called in its `setup`. Names are unique, "preference" and "loss" are taken."""
        if regularizer in self._regularizers:
            return
        taken = {"preference", "loss", *(other.name for other in self._regularizers)}
        if regularizer.name in taken:
            raise ValueError(
                f"two terms of the loss are named {regularizer.name!r}; give one of the regularizers another `name`"
            )
        self._regularizers.append(regularizer)

    @property
    def regularizers(self) -> list[Regularizer]:
        """The regularizers that enter the loss, in the order of the callbacks."""
        return [regularizer for regularizer in self._regularizers if regularizer.active]

    @property
    def signals(self) -> frozenset[Signal]:
        """What the one forward must compute."""
        return frozenset().union(*(regularizer.needs for regularizer in self.regularizers))

    def forward(self, batch: GroupBatch, signals: frozenset[Signal] = frozenset()) -> Outputs:
        """One forward of the model, rewards and the signals asked for."""
        assert self.model is not None
        return self.model(batch, signals)

    def objective(self, outputs: Outputs, batch: GroupBatch) -> Objective:
        """The loss of a pack and its terms, at the weights of the current step."""
        penalties = {
            regularizer.name: Penalty(
                regularizer.penalty(outputs, batch),
                regularizer.weight_at(self.global_step),
                regularizer.mixing == "convex",
            )
            for regularizer in self.regularizers
        }
        return objective(self.preference(outputs, batch), penalties, batch)

    def training_step(self, batch: GroupBatch, batch_idx: int) -> Tensor:
        """The loss of one pack, scaled so that Lightning's and the strategy's means give the step's (contract 4)."""
        torch.manual_seed(_mix(self.seed, self.global_step, batch.micro_batch, self.global_rank))
        outputs = self(batch, self.signals)
        result = self.objective(outputs, batch)
        self._record({"loss": result.loss.detach(), **result.terms, **self.training_figures(outputs, batch)})
        return result.loss * (self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def training_figures(self, outputs: Outputs, batch: GroupBatch) -> dict[str, Tensor]:
        """Further figures of a pack to log; they are summed over the packs and ranks of a step."""
        difference_C = outputs.rewards_N[batch.better_C] - outputs.rewards_N[batch.worse_C]
        right_G = batch.mean_by_group((difference_C.detach().sign() + 1) / 2)
        return {"accuracy": (right_G * batch.count_G).sum() / batch.groups_in_step}

    def _record(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._meter[name] = self._meter[name] + value if name in self._meter else value

    def on_train_batch_end(self, outputs: Any, batch: GroupBatch, batch_idx: int) -> None:
        """At the end of a step: count it, and flush the meter when it is time."""
        if batch.micro_batch + 1 < self.trainer.accumulate_grad_batches:
            return
        self._steps_metered += 1
        every: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] - set in its __init__
        if self.global_step % every == 0 or self.trainer.is_last_batch:
            self._flush()

    def _flush(self) -> None:
        """Reduce the metered terms over ranks, check them, and hand them to the loggers and the progress bar."""
        names = list(self._meter)
        totals = torch.stack([self._meter[name].float() for name in names]) / self._steps_metered
        values = dict(zip(names, self.trainer.strategy.reduce(totals, reduce_op="sum").tolist(), strict=True))
        self._meter, self._steps_metered = {}, 0
        if bad := [name for name, value in values.items() if not math.isfinite(value)]:
            raise ValueError(f"at step {self.global_step} these terms are not finite: {', '.join(bad)}")
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        figures = {f"train/{name}": value for name, value in values.items()} | {"train/learning_rate": rate}
        for regularizer in self.regularizers:
            figures[f"train/{regularizer.name}_weight"] = regularizer.weight_at(max(self.global_step - 1, 0))
        for logger in self.loggers:
            logger.log_metrics(figures, step=self.global_step)
        shown = {"train/loss", "train/accuracy"}
        self.log_dict({k: v for k, v in figures.items() if k in shown}, prog_bar=True, logger=False, batch_size=1)

    def configure_optimizers(self) -> Any:
        """The optimizer over trainable parameters, with warm-up and schedule counted in optimizer steps."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = math.ceil(self.warmup_ratio * steps)
        factor = _learning_rate_factor(self.schedule, warmup, steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the loader's state, and count batches as steps x the current accumulation, which cuts steps right."""
        fit_loop = checkpoint["loops"]["fit_loop"]
        self._loader_state = next(iter(fit_loop["state_dict"].get("combined_loader", [])), None)
        steps = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["current"][
            "completed"
        ]
        progress = fit_loop["epoch_loop.batch_progress"]
        shift = steps * self.trainer.accumulate_grad_batches - progress["current"]["ready"]
        for name in ("ready", "started", "processed", "completed"):
            progress["current"][name] += shift
            progress["total"][name] += shift

    def on_train_start(self) -> None:
        """Put the loader where the checkpoint left it.

        Lightning restores loaders too, but not if they exist before its loops are restored, and counting the steps of
        the learning-rate schedule makes them exist.
        """
        if self._loader_state is not None:
            loader: Any = self.trainer.train_dataloader
            loader.load_state_dict(self._loader_state)
            self._loader_state = None


def _learning_rate_factor(schedule: Schedule, warmup: int, steps: int) -> Any:
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]

    return factor


def _mix(*numbers: int) -> int:
    """A seed from several numbers, by the splitmix64 finalizer."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state
