"""Checkpoints: whole or not there, whenever the process is killed.

Notable decisions:

- What is being written has a hidden name beside its target and is renamed when it is complete; what is removed is
  renamed to a hidden name first. The next run in that folder sweeps hidden names away.
- `last.ckpt` is a relative link, swapped in one rename as soon as a checkpoint is complete, before an older one goes.
- Only complete steps are saved: never between the packs of one.
- A checkpoint folder belongs to one run at a time.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from weakref import proxy

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from grmlight.data.batch import GroupBatch
from grmlight.data.files import remove
from grmlight.models.shards import last_line, read_whole

HIDDEN = ".saving-"
"""How the names of unfinished and of leaving checkpoints begin."""

_OLD = f"{HIDDEN}old-"

_NEWEST_ALONE = re.compile(r"last-\d+\.ckpt")


class Checkpoints(ModelCheckpoint):
    """Lightning's ModelCheckpoint with its arguments, on a local or shared file system; files and folders alike.

    Where `save_last` is set, `last.ckpt` links to the newest checkpoint; one that is not among the best is kept as
    `last-STEP.ckpt` until the next one is there.
    """

    trained = False
    """Whether a step of this process has begun."""
    _within_step = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sweep what a killed run left behind.

        Errors: ValueError if the folder is no path of a file system, or cannot be written.
        """
        if "://" in str(self.dirpath or ""):
            raise ValueError(f"checkpoint.dirpath {self.dirpath}: checkpoints are renamed; give a path, not a URL")
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = PlainFiles()
        if stage == "fit" and trainer.is_global_zero:
            _check_writable(self._folder)
            sweep(self._folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step that a run goes on from is saved already."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From here on the run has something to keep."""
        self.trained = self._within_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: GroupBatch, batch_idx: int
    ) -> None:
        """Save where it is time and a step is complete."""
        self._within_step = pl_module.automatic_optimization and batch.micro_batch + 1 < batch.packs
        if pl_module.automatic_optimization:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        else:
            self._save_if_passed(trainer)

    def _save_if_passed(self, trainer: Trainer) -> None:
        """With manual optimization a batch may be several steps, and pass over the one that is due.

        Lightning's own asks such modules for their weights from before the optimizer step, which nobody wants here.
        """
        every = self._every_n_train_steps
        if every < 1 or trainer.global_step // every <= self._last_global_step_saved // every:
            return
        candidates = self._monitor_candidates(trainer)
        if not self._should_skip_saving_checkpoint(trainer) and (self.monitor is None or self.monitor in candidates):
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    def _should_skip_saving_checkpoint(self, trainer: Trainer) -> bool:
        return self._within_step or super()._should_skip_saving_checkpoint(trainer)

    def _should_save_on_exception(self, trainer: Trainer) -> bool:
        return not self._within_step and super()._should_save_on_exception(trainer)

    def keep(self, trainer: Trainer) -> None:
        """Save this step, which is complete, as the newest one, whatever the interval is."""
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    @property
    def _folder(self) -> Path:
        assert self.dirpath is not None
        return Path(self.dirpath)

    @property
    def _last(self) -> Path:
        return self._folder / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Write, rename, swap the link; on all ranks, which go on when all of it is done."""
        target = Path(filepath)
        hidden = target.with_name(HIDDEN + target.name)
        if self.save_last:
            self.last_model_path = str(self._last)
        trainer.save_checkpoint(hidden, self.save_weights_only)
        if trainer.is_global_zero:
            publish(hidden, target)
            if self.save_last:
                self._swap_last(target)
        trainer.strategy.barrier("Checkpoints")
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Keep this step where it was not saved as one of the best."""
        if self.save_last and (self._last_global_step_saved != trainer.global_step or not self._last_checkpoint_saved):
            name = f"{self.CHECKPOINT_NAME_LAST}-{trainer.global_step}{self.FILE_EXTENSION}"
            self._save_checkpoint(trainer, str(self._folder / name))

    def _swap_last(self, target: Path) -> None:
        before = self._last.resolve() if self._last.is_symlink() else None
        link = self._last.with_name(HIDDEN + self._last.name)
        link.symlink_to(os.path.relpath(target, self._folder))
        publish(link, self._last)
        if before is not None and before.name != target.name and _NEWEST_ALONE.fullmatch(before.name):
            discard(before)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if trainer.is_global_zero:
            discard(Path(filepath))


def keep_checkpoint(trainer: Trainer) -> None:
    """Save this step, where the run keeps checkpoints: before an error that ends it."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, Checkpoints):
            callback.keep(trainer)


class PlainFiles(TorchCheckpointIO):
    """Reads and writes checkpoints where they lie; Lightning's own go through memory and the system's /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a file.

        Errors: ValueError if it cannot be written; nothing of it stays.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(checkpoint, path)
        except (RuntimeError, OSError) as error:
            # torch's writer raises RuntimeError for a full disk.
            remove(Path(path))
            raise unwritten(Path(path), error) from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a file, or a folder of shards as a whole; plain data alone."""
        if Path(path).is_dir():
            return read_whole(Path(path))
        return torch.load(path, map_location=map_location, weights_only=True)


def unwritten(path: Path, error: BaseException) -> ValueError:
    """The error of a checkpoint that could not be written, from that of torch's writer."""
    # Its own text for a disk or quota that is full is a position in the file.
    reason = "a file was cut short, as on a full disk" if "inline_container" in str(error) else last_line(error)
    return ValueError(
        f"{path.parent}: a checkpoint cannot be written ({reason}); make room there, and go on from its last checkpoint"
    )


def publish(hidden: Path, target: Path) -> None:
    """Give a complete file, link or folder its name, in the place of what had it before."""
    if hidden.is_file() and not hidden.is_symlink():
        with hidden.open("rb") as file:
            os.fsync(file.fileno())
    if _is_folder(target) or (_is_folder(hidden) and target.exists()):
        # A folder can neither replace nor be replaced: it steps aside, and goes when the new one has its name.
        _remove(_leaving(target))
        aside = target.replace(_leaving(target))
        hidden.replace(target)
        _remove(aside)
        return
    hidden.replace(target)


def discard(path: Path) -> None:
    """Remove a file or folder; its name is gone at once."""
    if path.exists():
        _remove(_leaving(path))
        _remove(path.replace(_leaving(path)))


def sweep(folder: Path) -> None:
    """Remove what a killed run left behind; what stepped aside for something that never came has its name again."""
    for aside in folder.glob(f"{_OLD}*"):
        target = aside.with_name(aside.name.removeprefix(_OLD))
        if _is_folder(aside) and not target.exists() and target.with_name(HIDDEN + target.name).exists():
            aside.replace(target)
    for path in folder.glob(f"{HIDDEN}*"):
        _remove(path)


def _leaving(path: Path) -> Path:
    return path.with_name(_OLD + path.name)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{HIDDEN}probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{folder}: cannot keep checkpoints ({error.strerror}); set checkpoint.dirpath") from error


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        remove(path)
