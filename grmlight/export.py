"""Models in and out: the folder that training leaves, scoring reads and others load.

A model folder holds the weights (safetensors) and `config.json` in GRM's layout, the tokenizer, and `grmlight.json`
with the preparation options it was trained with, so that scoring reads text as training did.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from grmlight.data.files import remove, temporary_sibling, write_json
from grmlight.data.options import PrepareOptions
from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation.run_report import run_directory
from grmlight.models import RewardModel, gather
from grmlight.models.checkpoint import publish_model
from grmlight.models.loading import OPTIONS_FILE
from grmlight.models.shards import is_shards, read_tensors
from grmlight.training.description import DESCRIPTION, build, unpack_tokenizer
from grmlight.training.resume import find_checkpoint, read_checkpoint

MODEL_FOLDER = "model"


class SaveModel(Callback):
    """Writes the trained model to `model/` in the run directory, and prints where it is and how to score with it."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last step."""
        directory = run_directory(trainer)
        model: Any = pl_module.model
        if directory is None or not isinstance(model, RewardModel) or (whole := gather(model)) is None:
            return
        if not trainer.is_global_zero:
            return
        datamodule: Any = getattr(trainer, "datamodule", None)
        if datamodule is None:
            return
        save_model(whole, directory / MODEL_FOLDER, datamodule.tokenizer, datamodule.options)
        print(f"model: {directory / MODEL_FOLDER}")
        print(f"score with it: grmlight score {directory / MODEL_FOLDER} PAIRS.jsonl --out scores.jsonl")


def save_model(model: RewardModel, directory: Path, tokenizer: str, options: PrepareOptions) -> None:
    """Write a model folder: weights, configuration, tokenizer, and the preparation options."""
    model.save_pretrained(directory, tokenizer=load_tokenizer(tokenizer, options.chat_template))
    kept = dataclasses.asdict(options)
    for name in ("stride", "offset", "limit", "flip", "flip_seed", "chat_template"):
        kept.pop(name)
    # What a model of another kind wrote there about itself stays.
    path = directory / OPTIONS_FILE
    own = {} if type(model) is RewardModel else json.loads(path.read_text(encoding="utf-8"))
    write_json(path, own | {"prepare": kept})


def export(source: Path, out: Path) -> Path:
    """Write the model folder of a run or of one of its checkpoints; one CPU process does.

    Args:
        source: a run directory (its `model/`, else its newest checkpoint), a model folder, a checkpoint file, or a
            folder of shards.
        out: the folder to write.

    Returns:
        What was exported.

    Errors: ValueError in one line for what holds no model, or does not fit.
    """
    if out.is_file() or out.resolve() == source.resolve():
        raise ValueError(f"{out}: cannot be the model's folder; name a new one with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise ValueError(f"{out}: holds other files; name an empty or a new folder with --out")
    if source.is_dir() and not is_shards(source):
        for folder in (source, source / MODEL_FOLDER):
            if (folder / "config.json").exists():
                _copy_model(folder, out)
                return folder
    checkpoint = find_checkpoint(str(source), training=False)
    _export_checkpoint(checkpoint, out)
    return checkpoint


def _copy_model(folder: Path, out: Path) -> None:
    if "vhead_layer_type" not in json.loads((folder / "config.json").read_text(encoding="utf-8")) and not _has_kind(
        folder
    ):
        raise ValueError(f"{folder}: is no reward model; give a run directory or one of its checkpoints")
    hidden = temporary_sibling(out)
    try:
        shutil.copytree(folder, hidden)
        publish_model(hidden, out)
    finally:
        remove(hidden)


def _has_kind(folder: Path) -> bool:
    path = folder / OPTIONS_FILE
    return path.exists() and "kind" in json.loads(path.read_text(encoding="utf-8"))


def _export_checkpoint(checkpoint: Path, out: Path) -> None:
    found = read_checkpoint(checkpoint, training=False)
    described = found.get(DESCRIPTION)
    if described is None:
        raise ValueError(f"{checkpoint}: does not say of which model it is; only runs on a PairDataModule do")
    tensors = read_tensors(checkpoint, "state_dict.") if checkpoint.is_dir() else found["state_dict"]
    with tempfile.TemporaryDirectory() as tokenizer:
        unpack_tokenizer(described, Path(tokenizer))
        save_model(build(described, tensors), out, tokenizer, PrepareOptions(**described["prepare"]))


def model_folder(path: Path) -> Path:
    """The model folder that a path means: itself, or the `model/` of a run directory.

    Errors: ValueError if there is none.
    """
    for candidate in (path, path / MODEL_FOLDER):
        if (candidate / "config.json").exists():
            return candidate
    raise ValueError(f"{path}: holds no model (no config.json); give a run directory or a model folder")


def load_options(directory: Path) -> PrepareOptions:
    """The preparation options a model was trained with; the defaults for a folder of another origin."""
    path = directory / OPTIONS_FILE
    if not path.exists():
        return PrepareOptions()
    try:
        return PrepareOptions(**json.loads(path.read_text(encoding="utf-8"))["prepare"])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as preparation options ({error}); copy the model again") from error
