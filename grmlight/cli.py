"""The command line: Lightning's subcommands on YAML, and the commands that need no Trainer as plain functions."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch.distributed
from jsonargparse import ArgumentError, ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from grmlight.assemble import assemble
from grmlight.convert import Format, convert
from grmlight.data.datamodule import PairDataModule
from grmlight.data.files import remove, write_json
from grmlight.data.options import PrepareOptions
from grmlight.data.prepare import prepare
from grmlight.evaluation.benchmarks import BENCHMARKS
from grmlight.evaluation.command import Destinations, evaluate_model
from grmlight.evaluation.compare import TABLES, compare
from grmlight.evaluation.compare_output import as_text, write_comparison
from grmlight.evaluation.group_scorer import ScoringOptions
from grmlight.evaluation.learning_curve import LearningCurve
from grmlight.evaluation.matrix import launch_lines
from grmlight.evaluation.predictions import PredictionWriter
from grmlight.evaluation.report import as_table
from grmlight.evaluation.run_files import read_runs
from grmlight.evaluation.run_report import RunReport, describe_report
from grmlight.export import SaveModel
from grmlight.models.aggregation import Aggregation
from grmlight.module import GroupModule
from grmlight.scoring import score
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
        PairDataModule,
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


def run_compare(arguments: list[str]) -> None:
    """`compare RUN...`, or `compare --launch`."""
    parser = ArgumentParser(
        exit_on_error=False,
        prog="grmlight compare",
        description="Put runs into the papers' tables, with paired differences to the first and the published rows.",
    )
    parser.add_argument("runs", nargs="*", help="run directories, each RUN or LABEL=RUN; the first is compared with")
    parser.add_argument("--table", choices=list(TABLES), help="this table alone, of those that the runs have")
    parser.add_argument(
        "--published",
        choices=["matching", "all", "none"],
        default="matching",
        help="published rows: of the runs' own settings, all on their base models and data, or none",
    )
    parser.add_argument("--markdown", type=Path, help="write the tables as Markdown")
    parser.add_argument("--json", type=Path, help="write everything as JSON")
    parser.add_argument("--plot", type=Path, help="draw the tables, as .png, .svg or .pdf")
    parser.add_argument("--launch", action="store_true", help="print the commands of the GRM paper's tables instead")
    given = parser.parse_args(arguments)
    if given.launch:
        print(launch_lines())
        return
    tables = compare(read_runs(given.runs), given.table, given.published)
    write_comparison(tables, given.json, given.markdown, given.plot)
    print(as_text(tables))


def run_prepare(arguments: list[str]) -> None:
    """`prepare FILE --tokenizer DIR --out DIR`."""
    parser = ArgumentParser(
        exit_on_error=False, prog="grmlight prepare", description="Lint, tokenize and store preference pairs."
    )
    parser.add_argument("file", type=str, help="a file, a folder, or a data set NAME[@CONFIG][:SPLIT]")
    parser.add_argument("--tokenizer", type=str, required=True, help="a hub name or a folder")
    parser.add_argument("--out", type=Path, required=True, help="the store's folder")
    parser.add_class_arguments(PrepareOptions)
    given = parser.parse_args(arguments)
    options = PrepareOptions(**{name: given[name] for name in PrepareOptions.__dataclass_fields__})
    found = prepare(given.file, given.tokenizer, options, given.out)
    write_json(given.out / "report.json", found.report)
    print(describe_report("prepared", {"source": given.file} | found.report))
    print(f"store: {given.out}, report: {given.out / 'report.json'}")


def run_score(arguments: list[str]) -> None:
    """`score MODEL FILE --out F`."""
    parser = ArgumentParser(
        exit_on_error=False, prog="grmlight score", description="Write the rewards of preference pairs."
    )
    parser.add_argument("model", type=Path, help="a run directory or a model folder")
    parser.add_argument("file", type=str, help="a file, a folder, or a data set NAME[@CONFIG][:SPLIT]")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, a JSON line a pair")
    parser.add_argument("--pairs_per_batch", type=int, default=64, help="pairs of one forward")
    parser.add_argument("--aggregation", type=Aggregation | None, help="of an ensemble: mean, wco or uwo")
    parser.add_argument("--variance_weight", type=float | None, help="lambda of uwo")
    given = parser.parse_args(arguments)
    found = score(given.model, given.file, given.out, given.pairs_per_batch, given.aggregation, given.variance_weight)
    print(describe_report("scored", {"source": given.file} | found.report))
    print(f"scores: {given.out}")


def run_evaluate(arguments: list[str]) -> None:
    """`evaluate MODEL --benchmarks ... | --pairs FILE`."""
    parser = ArgumentParser(
        exit_on_error=False, prog="grmlight evaluate", description="Measure a model on benchmarks and pair files."
    )
    parser.add_argument("model", type=Path, help="a run directory or a model folder")
    names = ", ".join(BENCHMARKS)
    parser.add_argument("--benchmarks", type=str, help=f"names, with commas: {names}; NAME=PATH reads a local copy")
    parser.add_argument("--pairs", type=str, help="a file of pairs, in any form that training takes")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_class_arguments(Destinations)
    parser.add_class_arguments(ScoringOptions)
    given = parser.parse_args(arguments)
    destinations = Destinations(**{name: given[name] for name in Destinations.__dataclass_fields__})
    scoring = ScoringOptions(**{name: given[name] for name in ScoringOptions.__dataclass_fields__})
    results = evaluate_model(given.model, given.benchmarks, given.pairs, destinations, scoring, given.seed)
    print(as_table(results))


def run_export(arguments: list[str]) -> None:
    """`export RUN_OR_CHECKPOINT --out DIR [--format F]`."""
    parser = ArgumentParser(
        exit_on_error=False, prog="grmlight export", description="Make a Hugging Face folder of a run or checkpoint."
    )
    parser.add_argument("source", type=Path, help="a run directory, a model folder, a .ckpt file or folder of shards")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--format",
        type=Format,
        default="grm",
        help="GRM's layout, a peft adapter, or a sequence classifier",
    )
    parser.add_argument("--distill", type=str, help="pairs on which a classifier's MLP head becomes a linear one")
    given = parser.parse_args(arguments)
    exported, notes = convert(given.source, given.out, given.format, given.distill)
    print("\n".join([f"exported: {exported}", *notes, f"model: {given.out}"]))


def run_ensemble(arguments: list[str]) -> None:
    """`ensemble MODEL MODEL ... --reference FILE --out DIR`."""
    parser = ArgumentParser(
        exit_on_error=False, prog="grmlight ensemble", description="Put trained reward models together."
    )
    parser.add_argument("models", type=Path, nargs="+", help="run directories or model folders")
    parser.add_argument("--reference", type=str, required=True, help="pairs on which members are recentered and scaled")
    parser.add_argument("--out", type=Path, required=True, help="the ensemble's folder")
    parser.add_argument("--aggregation", type=Aggregation, default="mean", help="mean, wco or uwo")
    parser.add_argument("--variance_weight", type=float, default=0.5, help="lambda of uwo")
    given = parser.parse_args(arguments)
    found = assemble(given.models, given.out, given.reference, given.aggregation, given.variance_weight)
    print(describe_report("reference", {"source": given.reference} | found.report))
    print(f"ensemble of {len(given.models)}: {given.out}")


def run_label(arguments: list[str]) -> None:
    """`label FILE --out F --capabilities F --endpoint URL | --model DIR`."""
    from grmlight.labeling import EndpointAsker, LocalAsker, label, read_capabilities

    parser = ArgumentParser(
        exit_on_error=False,
        prog="grmlight label",
        description="Ask a language model which side of each pair is better in a capability; keep what it agrees on.",
    )
    parser.add_argument("file", type=str, help="a file, a folder, or a data set NAME[@CONFIG][:SPLIT]")
    parser.add_argument("--out", type=Path, required=True, help="the pairs to write, a JSON line a label")
    parser.add_argument("--capabilities", type=Path, required=True, help="YAML: {category: {capability: description}}")
    parser.add_argument("--endpoint", type=str, help="an OpenAI-compatible API, as in http://127.0.0.1:8000/v1")
    parser.add_argument("--model", type=str, help="a folder or a hub name; with --endpoint the name it is served by")
    parser.add_argument("--parallel", type=int, default=4, help="questions at once, to an endpoint")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for an endpoint's reply")
    parser.add_argument("--retries", type=int, default=5, help="further tries after an error that may pass")
    given = parser.parse_args(arguments)
    if not given.endpoint and not given.model:
        raise ValueError("name the language model: --model DIR, or --endpoint URL")
    capabilities = read_capabilities(given.capabilities)
    if given.endpoint:
        asker = EndpointAsker(given.endpoint, given.model, given.timeout, given.retries, given.parallel)
    else:
        asker = LocalAsker(given.model)
    print(label(given.file, given.out, capabilities, asker).describe())
    print(f"labels: {given.out}")


FUNCTIONS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "prepare": ("lint, tokenize and store preference pairs", run_prepare),
    "score": ("write the rewards of preference pairs", run_score),
    "evaluate": ("measure a model on benchmarks and pair files", run_evaluate),
    "compare": ("put runs into the papers' tables", run_compare),
    "label": ("let a language model label pairs for capabilities", run_label),
    "export": ("make a Hugging Face folder of a run or checkpoint", run_export),
    "ensemble": ("put trained reward models together", run_ensemble),
}


def usage() -> str:
    """The overview of all commands."""
    commands = TRAINER_COMMANDS | {name: text for name, (text, _) in FUNCTIONS.items()}
    lines = "\n".join(f"  {name:9} {text}" for name, text in commands.items())
    return f"usage: grmlight COMMAND [ARGUMENTS]\n\ncommands (each has --help):\n{lines}"


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a mistake in configuration or data ends it with one line and status 1."""
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
    logging.getLogger("transformers.distributed.tensor_parallel").setLevel(logging.ERROR)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.callbacks.model_checkpoint"):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith("\N{ELECTRIC LIGHT BULB}"))
