"""GroupModule: what every LightningModule of the project shares.

Notable decisions:

- A step is exact in groups: see `grmlight.training.objective`.
- Dropout is seeded at each micro-batch from (seed, step, micro-batch, rank), so no generator state is saved.
- Training figures stay on the device and are flushed every `log_every_n_steps`; nothing waits for the device in a step,
  unless steps that are not finite shall be skipped.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Self

import lightning.pytorch as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from grmlight.data.batch import GroupBatch
from grmlight.models.flops import ModelFlops
from grmlight.models.memory import memory_errors
from grmlight.models.outputs import Outputs, Signal
from grmlight.training.gradients import all_finite, clip_gradients, gradient_norm
from grmlight.training.meter import Meter, Ranks
from grmlight.training.resume import count_packs
from grmlight.training.speed import peak_flops, work_figures

Schedule = Literal["cosine", "linear", "constant"]
NonFinite = Literal["stop", "skip"]


def default_optimizer(parameters: Any) -> torch.optim.Optimizer:
    """AdamW as in the GRM paper: learning rate 1e-5, no weight decay."""
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)


class GroupModule(L.LightningModule):
    """Base of the modules that train on packs of groups. Subclasses build the model and give the steps.

    Args:
        optimizer: makes the optimizer from the trainable parameters.
        schedule: course of the learning rate after the warm-up.
        warmup_ratio: share of all optimizer steps in which the learning rate rises from 0.
        seed: seed of newly made weights and of dropout.
        on_nonfinite: what to do about a loss or gradient that is not finite. "stop" ends the run at the next logged
            line or checkpoint, and names step, terms and rows; "skip" leaves the step out, and waits for the device
            once a step.
    """

    model: torch.nn.Module | None
    shown: tuple[str, ...] = ("train/loss", "train/accuracy")
    """Figures for the progress bar, and for callbacks that monitor one."""

    def __init__(
        self,
        optimizer: OptimizerCallable = default_optimizer,
        schedule: Schedule = "cosine",
        warmup_ratio: float = 0.03,
        seed: int = 0,
        on_nonfinite: NonFinite = "stop",
    ) -> None:
        super().__init__()
        if on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite must be 'stop' or 'skip', got {on_nonfinite!r}")
        if not 0 <= warmup_ratio < 1:
            raise ValueError(f"warmup_ratio must be at least 0 and below 1, got {warmup_ratio}")
        self.optimizer = optimizer
        self.schedule: Schedule = schedule
        self.warmup_ratio = warmup_ratio
        self.seed = seed
        self.on_nonfinite: NonFinite = on_nonfinite
        self.model = None
        self.meter = Meter()
        self._resumed: dict[str, Any] = {}
        self._flops: ModelFlops | None = None
        self._peak: float | None = None

    def model_flops(self) -> ModelFlops | None:
        """What a step of this model costs, where that is known."""
        return None

    def forward(self, batch: GroupBatch, signals: frozenset[Signal] = frozenset()) -> Outputs:
        """One forward of the model, rewards and the signals asked for."""
        assert self.model is not None
        return self.model(batch, signals)

    def prepare_to_score(self) -> None:
        """Make the model what it would be if it were saved now. Call it on every rank."""

    def memory_advice(self) -> list[str]:
        """What would make this run fit if it does not, the most effective first."""
        return []

    def _memory_errors(self) -> AbstractContextManager[None]:
        return memory_errors(self._describe_memory)

    def _describe_memory(self) -> str:
        """Where, what would help, and the checkpoint to go on from."""
        advice = "; ".join(self.memory_advice()) or "smaller packs or a smaller model"
        checkpoint = getattr(self.trainer.checkpoint_callback, "last_model_path", "") or self.trainer.ckpt_path
        rest = f"; go on from the last checkpoint with --ckpt_path {checkpoint}" if checkpoint else ""
        return f" after step {self.global_step}. What makes it fit, the most effective first: {advice}{rest}"

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the module.

        Errors: ValueError that says what to do if it does not fit.
        """
        with self._memory_errors():
            return super().to(*args, **kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """As usual.

        Errors: ValueError that says what to do if it does not fit.
        """
        with self._memory_errors():
            super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by a norm that stays on the device, or as asked; leave out a step that is not finite, if it shall be."""
        by_norm = bool(gradient_clip_val) and gradient_clip_algorithm != "value"
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = gradient_norm(parameters) if by_norm or self.on_nonfinite == "skip" else None
        if norm is not None and self.on_nonfinite == "skip" and not self._finite_on_all_ranks(norm):
            rank_zero_info(f"{self.meter.drop_step(norm, self._ranks)}: skipped")
            # An optimizer passes over what has no gradient: no weight, moment or decay moves.
            optimizer.zero_grad(set_to_none=True)
            return
        self.meter.end_step(norm)
        if by_norm and norm is not None:
            clip_gradients(parameters, norm, float(gradient_clip_val or 0))
        elif gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """As usual; what callbacks do after it, such as checkpoints, is no time spent training."""
        with self._memory_errors():
            super().optimizer_step(*args, **kwargs)
        self.meter.pause()

    def on_train_batch_end(self, outputs: Any, batch: GroupBatch, batch_idx: int) -> None:
        """At the end of a step, log if it is time."""
        if batch.micro_batch + 1 < batch.packs:
            return
        self.meter.clock.start()
        if self.logs_at(self.global_step):
            self._log_training()

    def on_train_epoch_start(self) -> None:
        """Time spent training begins."""
        self.meter.clock.start()

    def on_train_epoch_end(self) -> None:
        """What callbacks do between two epochs is no time spent training."""
        self.meter.pause()

    def on_validation_start(self) -> None:
        """Nor is validation; what the device has still to do before it is."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.meter.pause()

    def on_validation_end(self) -> None:
        """Go on."""
        self.meter.clock.start()

    def on_train_end(self) -> None:
        """Log the steps that are left over.

        Errors: ValueError if the weights are no longer finite, so that no model is made of them.
        """
        if self.global_step > self.meter.since:
            self._log_training()
        self._check_finite_weights()

    def logs_at(self, step: int) -> bool:
        """Whether a line is logged after so many steps."""
        every: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] - set in its __init__
        return step % (every or sys.maxsize) == 0

    def _log_training(self) -> None:
        """Hand what was measured to the loggers and the progress bar.

        Errors: ValueError that names the first step that was not finite.
        """
        read = self.meter.flush(self.global_step, self._ranks)
        figures = {f"train/{name}": value for name, value in read.figures.items()}
        figures["train/learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        if self.on_nonfinite == "skip":
            figures["train/skipped"] = self.meter.skipped
        figures |= work_figures(read.work, self.trainer.world_size, self._flops, self._peak)
        figures = self.finish_figures(figures)
        for logger in self.loggers:
            logger.log_metrics(figures, step=self.global_step)
        shown = {name: figures[name] for name in self.shown if name in figures}
        self.trainer.progress_bar_metrics.update(shown)
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in shown.items()})

    def finish_figures(self, figures: dict[str, float]) -> dict[str, float]:
        """A line's figures, with those that a subclass adds and without those that it has no use for."""
        return figures

    def _finite_on_all_ranks(self, norm: Tensor) -> bool:
        """Wait for the device: are this step's terms and gradient finite?"""
        return bool(self._gather(self.meter.step_is_finite(norm).float()[None]).all())

    @property
    def _ranks(self) -> Ranks:
        return Ranks(self.global_rank, self.trainer.world_size, self._gather)

    def _gather(self, vector: Tensor) -> Tensor:
        return self.trainer.strategy.all_gather(vector.to(self.device)).view(-1, len(vector))

    def configure_optimizers(self) -> Any:
        """The optimizer over trainable parameters, with warm-up and schedule counted in optimizer steps."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule_factor(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def schedule_factor(self, steps: int) -> Callable[[int], float]:
        """The factor of the learning rate after so many of all `steps`."""
        return learning_rate_factor(self.schedule, math.ceil(self.warmup_ratio * steps), steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the meter; terms or weights that are not finite are an error, so the last finite checkpoint stays."""
        checkpoint["grmlight_meter"] = self.meter.state(self._ranks)
        self._check_finite_weights()

    def _check_finite_weights(self) -> None:
        if not self._gather(all_finite(self.parameters()).float()[None]).all():
            raise ValueError(
                f"step {self.global_step}: the weights are no longer finite; lower the learning rate, and go on from "
                "the last checkpoint"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the states of loader and meter for the start of training, and let steps be cut right."""
        if "loops" not in checkpoint:
            return
        loader_states = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
        self._resumed = {"loader": next(iter(loader_states), None), "meter": checkpoint.get("grmlight_meter")}
        self.count_batches(checkpoint)

    def count_batches(self, checkpoint: dict[str, Any]) -> None:
        """Let Lightning's count of batches fit this run's accumulation."""
        count_packs(checkpoint, self.trainer.accumulate_grad_batches)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As usual, with a one-line ValueError for the weights of another model."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise ValueError(f"the checkpoint is of another model: {' '.join(str(error).split())[:300]}") from error

    def on_train_start(self) -> None:
        """Put the loader and the meter where the checkpoint left them.

        Lightning restores loaders too, but not if they exist before its loops are restored, and counting the steps of
        the learning-rate schedule makes them exist.

        Errors: ValueError if the checkpoint was written on other data.
        """
        self._peak = peak_flops(self.device)
        self._flops = self.model_flops() if self._peak else None
        if self.on_nonfinite == "skip":
            rank_zero_info("on_nonfinite: skip waits for the device once a step; stop does not")
        loader: Any = self.trainer.train_dataloader
        if self._resumed.get("loader") is not None:
            loader.load_state_dict(self._resumed["loader"])
        if (meter := self._resumed.get("meter")) is not None:
            self.meter.load(meter, self._ranks, self.device)
            if self.global_step > self.meter.since and self.logs_at(self.global_step):
                self._log_training()
        self._resumed = {}


def learning_rate_factor(schedule: Schedule, warmup: int, steps: int) -> Callable[[int], float]:
    """A schedule over `steps` that first rises for `warmup` steps."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]

    return factor
