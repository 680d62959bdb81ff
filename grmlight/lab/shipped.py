"""A shipped configuration as objects, with some of its values changed: what `grmlight fit` would train."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As the command line does: `instantiate`, the new name of `instantiate_classes`, is not in all versions that we allow.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import lightning.pytorch as L
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from grmlight.data.datamodule import TextDataModule
from grmlight.module import GroupModule


@dataclasses.dataclass(frozen=True)
class Shipped:
    """What a configuration describes.

    Attributes:
        model, data: its modules.
        callbacks: of its trainer.
        epochs: passes over the data.
        clip: largest norm of the gradient, if Lightning clips it.
    """

    model: Any
    data: Any
    callbacks: list[L.Callback]
    epochs: int
    clip: float | None

    def fit(self, *callbacks: L.Callback, max_steps: int = -1) -> None:
        """Train on the CPU, with further callbacks; nothing is logged or kept on the disk."""
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=self.epochs,
            max_steps=max_steps,
            gradient_clip_val=self.clip,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            callbacks=[*self.callbacks, *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(self.model, self.data)


def shipped(path: Path, change: Callable[[dict[str, Any]], None]) -> Shipped:
    """Read a configuration, let `change` edit it in place, and make what it then describes.

    Errors: ValueError names the file, if it is not there or describes nothing that can be made.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such configuration; name the folder of them with --configs") from None
    change(entries)
    trainer = entries["trainer"]
    wanted = {"model": entries["model"], "data": entries["data"], "callbacks": trainer.get("callbacks") or []}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(GroupModule, "model")
    parser.add_subclass_arguments(TextDataModule, "data")
    parser.add_argument("--callbacks", type=list[L.Callback], default=[])
    try:
        config = parser.parse_object(wanted)
    except ArgumentError as error:
        raise ValueError(f"{path}: cannot be used ({' '.join(str(error).split())})") from error
    made: Any = parser.instantiate_classes(config)
    return Shipped(made.model, made.data, made.callbacks, trainer["max_epochs"], trainer.get("gradient_clip_val"))
