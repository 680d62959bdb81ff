"""Models in and out: the folder that training leaves, scoring reads and others load.

A model folder holds the weights (safetensors) and `config.json` in GRM's layout, the tokenizer, and `grmlight.json`
with the preparation options it was trained with, so that scoring reads text as training did.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from grmlight.data.files import write_json
from grmlight.data.options import PrepareOptions
from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation.run_report import run_directory
from grmlight.models import RewardModel, gather

MODEL_FOLDER = "model"
OPTIONS_FILE = "grmlight.json"


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
    write_json(directory / OPTIONS_FILE, {"prepare": kept})


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
