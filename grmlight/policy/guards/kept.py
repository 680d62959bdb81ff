"""One checkpoint that a guard keeps beside the run's own: written whole, renamed, and replaced by the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from grmlight.training.checkpoints import HIDDEN, Checkpoints, discard, publish


def checkpoints_of(trainer: Trainer, who: str) -> Checkpoints:
    """What writes the run's checkpoints. Errors: ValueError if there is nothing."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, Checkpoints):
            return callback
    raise ValueError(
        f"{who}: keeps a checkpoint beside the run's own, which has none; add Checkpoints to the callbacks"
    )


def folder_of(trainer: Trainer, who: str) -> Path:
    """Where they are; settled once all callbacks are set up."""
    folder = checkpoints_of(trainer, who).dirpath
    assert folder is not None
    return Path(folder)


class KeptCheckpoint:
    """The newest checkpoint under a guard's name: `NAME-STEP.ckpt`, a file or a folder of shards.

    Args:
        name: how its file begins.
        who: the guard, for messages.

    Attributes:
        step: of the checkpoint; None as long as there is none.
    """

    def __init__(self, name: str, who: str) -> None:
        self.name, self.who = name, who
        self.step: int | None = None
        self._folder = ""

    def choose(self, trainer: Trainer) -> None:
        """This step shall be kept. All guards choose before one writes, so every checkpoint knows of every choice."""
        self.step, self._folder = trainer.global_step, str(folder_of(trainer, self.who).absolute())

    def write(self, trainer: Trainer) -> None:
        """Write the chosen step, on all ranks; what was kept before goes when it is there."""
        target = Path(self._folder) / f"{self.name}-{self.step}.ckpt"
        hidden = target.with_name(HIDDEN + target.name)
        # Sharded, torch makes states up for an optimizer that has none before the first step, and counts that as one.
        unstepped = [optimizer for optimizer in trainer.optimizers if not optimizer.state]
        trainer.save_checkpoint(hidden, weights_only=False)
        for optimizer in unstepped:
            optimizer.state.clear()
        if trainer.is_global_zero:
            publish(hidden, target)
            for other in target.parent.glob(f"{self.name}-*.ckpt"):
                if other != target:
                    discard(other)
        trainer.strategy.barrier("guard")

    def path(self, trainer: Trainer) -> Path | None:
        """Where it is: a resumed run may keep its checkpoints elsewhere, and a run's folder may have been moved."""
        if self.step is None:
            return None
        resumed = [Path(trainer.ckpt_path).parent] if trainer.ckpt_path else []
        folders = [Path(self._folder), folder_of(trainer, self.who), *resumed]
        found = [folder / f"{self.name}-{self.step}.ckpt" for folder in folders]
        return next((path for path in found if path.exists()), found[0])

    def state_dict(self) -> dict[str, Any]:
        """Which step, and where."""
        return {"step": self.step, "folder": self._folder}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.step, self._folder = state_dict["step"], state_dict["folder"]


def roll_back(trainer: Trainer, pl_module: LightningModule, path: Path) -> None:
    """Give the run the weights and optimizer states of a checkpoint, bit for bit, on all ranks.

    Errors: ValueError if it is not there any more.
    """
    if not path.exists():
        raise ValueError(f"{path}: is not there, so the run cannot be rolled back to it; go on from another checkpoint")
    checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
    # A module takes the loops' state for the start of training, which this is none.
    checkpoint.pop("loops", None)
    pl_module.on_load_checkpoint(checkpoint)
    trainer.strategy.load_model_state_dict(checkpoint)
    trainer.strategy.load_optimizer_state_dict(checkpoint)
