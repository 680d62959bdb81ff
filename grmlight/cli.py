"""The command line: Lightning's subcommands on YAML, and those of `grmlight.commands`, which need no Trainer."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch.distributed
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from grmlight.commands import FUNCTIONS
from grmlight.data.datamodule import TextDataModule
from grmlight.data.files import remove
from grmlight.evaluation.learning_curve import LearningCurve
from grmlight.evaluation.predictions import PredictionWriter
from grmlight.evaluation.run_report import RunReport
from grmlight.export import SaveModel
from grmlight.module import GroupModule
from grmlight.training.checkpoints import Checkpoints
from grmlight.training.resume import find_checkpoint, last_checkpoint
from grmlight.training.sharding import check_precision, check_strategy

TRAINER_COMMANDS = {
    "fit": "train a model",
    "validate": "evaluate on the validation sets",
    "test": "evaluate on the test sets",
    "predict": "write the rewards of the test sets' pairs",
}


class CommandLine(LightningCLI):
    """Lightning's command line with the project's base classes and the callbacks that every run has."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Checkpoints have a key of their own, so that `trainer.callbacks` holds regularizers and can be replaced."""
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True})

    def before_instantiate_classes(self) -> None:
        """Find and read a checkpoint, and look at strategy and precision, before anything is built or written."""
        given = self.config[self.subcommand] if self.subcommand else self.config
        check_strategy(given.trainer.strategy)
        check_precision(given.trainer.precision)
        if given.trainer.accumulate_grad_batches < 1:
            raise ValueError("trainer.accumulate_grad_batches: a step has at least 1 pack; set it to 1 or more")
        path, found = given.get("ckpt_path"), None
        if path == "last":
            found = last_checkpoint(given.checkpoint.dirpath)
            print(f"ckpt_path last: {found or 'there is no checkpoint yet; starting anew'}")
        elif path and path not in ("best", "hpc", "registry"):
            found = find_checkpoint(str(path), training=self.subcommand == "fit")
        if path and path not in ("best", "hpc", "registry"):
            given["ckpt_path"] = found and str(found)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; a run that is refused before its first step leaves no directory."""
        logged = [Path(folder) for each in self.trainer.loggers if (folder := getattr(each, "log_dir", None))]
        fresh = {each for folder in logged for each in (folder, *folder.parents) if not each.exists()}
        try:
            super()._run_subcommand(subcommand)
        except (ValueError, OSError):
            trained = any(getattr(each, "trained", False) for each in self.trainer.checkpoint_callbacks)
            if self.trainer.is_global_zero and not trained:
                _sweep(fresh & set(logged), fresh - set(logged))
            raise

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: a checkpoint brings weights and state, YAML and flags bring the settings."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Let all loggers of a run write to one directory.

        Errors: ValueError for two callbacks of one kind and name.
        """
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except RuntimeError as error:
            if found := re.search(r"more than one stateful callback of type `(\w+)`", str(error)):
                raise ValueError(
                    f"two callbacks are a {found[1]} of one name; give one of them another `name`"
                ) from error
            raise
        numbered: list[Any] = [logger for logger in trainer.loggers if isinstance(logger.version, int)]
        for logger in numbered:
            logger._version = max(each.version for each in numbered)
        return trainer


class SaveConfig(SaveConfigCallback):
    """Keeps the configuration in the run's directory; without one nowhere, lest a file of the user's be replaced."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it once."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


def run_trainer(arguments: list[str]) -> None:
    """`fit`, `validate`, `test` and `predict`."""
    CommandLine(
        GroupModule,
        TextDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=1,
        trainer_defaults={"callbacks": [RunReport(), LearningCurve(), SaveModel(), PredictionWriter()]},
        parser_kwargs={"prog": "grmlight", "exit_on_error": False},
        # Lightning warns about arguments of its own beside those of the process.
        args=None if arguments == sys.argv[1:] else arguments,
    )


def usage() -> str:
    """The overview of all commands."""
    commands = TRAINER_COMMANDS | {name: text for name, (text, _) in FUNCTIONS.items()}
    width = max(map(len, commands))
    lines = "\n".join(f"  {name:{width}} {text}" for name, text in commands.items())
    return f"usage: grmlight COMMAND [ARGUMENTS]\n\ncommands (each has --help):\n{lines}"


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a mistake in configuration or data ends it with one line and status 1, Ctrl-C with 130."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(usage())
        return
    if command not in TRAINER_COMMANDS and command not in FUNCTIONS:
        sys.exit(f"grmlight: {command!r} is no command; choose from {', '.join([*TRAINER_COMMANDS, *FUNCTIONS])}")
    _quiet()
    try:
        run_trainer(arguments) if command in TRAINER_COMMANDS else FUNCTIONS[command][1](arguments[1:])
    except (ValueError, OSError, ArgumentError, MisconfigurationException) as error:
        if os.environ.get("GRMLIGHT_TRACEBACK"):
            raise
        sys.exit(f"grmlight {command}: {one_line(error)} (GRMLIGHT_TRACEBACK=1 shows where)")
    except KeyboardInterrupt:
        if os.environ.get("GRMLIGHT_TRACEBACK"):
            raise
        print(f"\ngrmlight {command}: stopped by the keyboard; what was written stays", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    _leave_process_group()


def one_line(error: Exception) -> str:
    """An error's message without line breaks, and without the branches of a union that were tried in vain."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    lines = dict.fromkeys(line.strip() for line in str(error).splitlines())
    noise = (
        "Subtypes:",
        "Errors:",
        "Given value",
        "Does not validate",
        "- Expected a <class 'NoneType'>",
        "Not a valid subclass",
    )
    return " ".join(line for line in lines if line and not line.startswith(noise))


_BEFORE_TRAINING = ("config.yaml", "hparams.yaml", "data.json", "events.out.*")
"""What a run writes before its first step."""


def _sweep(folders: set[Path], parents: set[Path]) -> None:
    """Remove folders that hold no more than a run's beginnings, and those of their parents that are then empty."""
    for folder in folders:
        files = (path for path in folder.rglob("*") if path.is_file())
        if all(any(path.match(begun) for begun in _BEFORE_TRAINING) for path in files):
            remove(folder)
    for parent in sorted(parents, reverse=True):
        with contextlib.suppress(OSError):
            parent.rmdir()


def _leave_process_group() -> None:
    """Join gloo's threads, which abort a process if they still hold tensors when the interpreter ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _quiet() -> None:
    """Leave out what frameworks say about themselves."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    # An online run logs its rollouts, and its data may hold no prompts for validation.
    warnings.filterwarnings("ignore", message=".*but have no `validation_step`. Skipping val loop.*")
    logging.getLogger("transformers.distributed.tensor_parallel").setLevel(logging.ERROR)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.callbacks.model_checkpoint"):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith("\N{ELECTRIC LIGHT BULB}"))
