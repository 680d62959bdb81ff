"""Models in and out: the folder that training leaves, scoring reads and others load.

A model folder holds the weights (safetensors) and `config.json` in GRM's layout, the tokenizer, and `grmlight.json`
with the preparation options it was trained with, so that scoring reads text as training did.
"""

from __future__ import annotations

import contextlib
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
from grmlight.models import AnyRewardModel, PolicyModel, RewardModel, gather, load_reward_model
from grmlight.models.adapters import ADAPTER_CONFIG
from grmlight.models.backbone import HEAD_PREFIX
from grmlight.models.checkpoint import MEMBER, publish_model
from grmlight.models.foreign import by_grm_authors, warn_of_text
from grmlight.models.loading import OPTIONS_FILE, read_kind
from grmlight.models.shards import is_shards, read_tensors
from grmlight.models.weights import tensor_names
from grmlight.training.description import DESCRIPTION, build, unpack_tokenizer
from grmlight.training.resume import find_checkpoint, read_checkpoint

MODEL_FOLDER = "model"

_MODEL_CONFIGS = ("config.json", ADAPTER_CONFIG)


class SaveModel(Callback):
    """Writes the trained model to `model/` in the run directory, and prints where it is and how to score with it."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last step."""
        directory = run_directory(trainer)
        model: Any = pl_module.model
        if directory is None or not isinstance(model, AnyRewardModel | PolicyModel) or (whole := gather(model)) is None:
            return
        if not trainer.is_global_zero:
            return
        datamodule: Any = getattr(trainer, "datamodule", None)
        if datamodule is None:
            return
        save_model(whole, directory / MODEL_FOLDER, datamodule.tokenizer, datamodule.options)
        print(f"model: {directory / MODEL_FOLDER}")
        if isinstance(model, AnyRewardModel):
            print(f"score with it: grmlight score {directory / MODEL_FOLDER} PAIRS.jsonl --out scores.jsonl")


def save_model(model: AnyRewardModel | PolicyModel, directory: Path, tokenizer: str, options: PrepareOptions) -> None:
    """Write a model folder: weights, configuration, tokenizer, and the preparation options."""
    model.save_pretrained(directory, tokenizer=load_tokenizer(tokenizer, options.chat_template))
    write_options(directory, options, **model.folder_entries())


def write_options(directory: Path, options: PrepareOptions, **more: Any) -> None:
    """Write `grmlight.json`: the preparation options that say how a text is read, and what else is known."""
    kept = dataclasses.asdict(options)
    for name in ("stride", "offset", "limit", "flip", "flip_seed", "chat_template"):
        kept.pop(name)
    # An ensemble's members are models of their own, and read text alike.
    for member in sorted(directory.glob(f"{MEMBER}*")):
        write_json(member / OPTIONS_FILE, {"prepare": kept})
    write_json(directory / OPTIONS_FILE, {"prepare": kept} | more)


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
    check_out(source, out)
    if (folder := finished_model(source)) is None:
        checkpoint = find_checkpoint(str(source), training=False)
        opened = open_checkpoint(checkpoint)
    elif _is_plain(folder):
        _copy_model(folder, out)
        return folder
    else:
        checkpoint, opened = folder, open_folder(folder)
    opened.model.save_pretrained(out, tokenizer=opened.tokenizer)
    write_options(out, opened.options, **opened.model.folder_entries())
    return checkpoint


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model with what reads text for it.

    Attributes:
        model: the model.
        tokenizer: its tokenizer, with its chat template.
        options: how a text is read.
    """

    model: AnyRewardModel | PolicyModel
    tokenizer: Any
    options: PrepareOptions

    @property
    def single(self) -> RewardModel:
        """The model, of which other tools have a layout. Errors: ValueError for a kind that only we have."""
        if type(self.model) is not RewardModel:
            raise ValueError(
                f"{type(self.model).__name__}: no other tool has a layout for it; export it with --format grm"
            )
        return self.model


def check_out(source: Path, out: Path) -> None:
    """Refuse a folder that is a file, the source, or holds anything but a model."""
    if out.is_file() or out.resolve() == source.resolve():
        raise ValueError(f"{out}: cannot be the model's folder; name a new one with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise ValueError(f"{out}: holds other files; name an empty or a new folder with --out")


def finished_model(source: Path) -> Path | None:
    """The model folder that a path means, if any: itself, or the `model/` of a run directory."""
    candidates = () if is_shards(source) else (source, source / MODEL_FOLDER)
    return next((folder for folder in candidates if _is_finished(folder)), None)


def _is_finished(folder: Path) -> bool:
    """Whether its config is there, which is written last; a judge needs none."""
    return any((folder / name).exists() for name in _MODEL_CONFIGS) or read_kind(folder) == "judge"


def open_folder(folder: Path) -> Opened:
    """The reward model of a folder of any layout. Errors: ValueError in one line."""
    model: Any = load_reward_model(folder)
    return Opened(model, load_tokenizer(str(folder)), load_options(folder))


def open_checkpoint(checkpoint: Path) -> Opened:
    """The reward model of a training checkpoint. Errors: ValueError in one line."""
    found = read_checkpoint(checkpoint, training=False)
    described = found.get(DESCRIPTION)
    if described is None:
        raise ValueError(f"{checkpoint}: does not say of which model it is; only runs on a PairDataModule do")
    tensors = read_tensors(checkpoint, "state_dict.") if checkpoint.is_dir() else found["state_dict"]
    options = PrepareOptions(**described["prepare"])
    with tempfile.TemporaryDirectory() as folder:
        unpack_tokenizer(described, Path(folder))
        tokenizer = load_tokenizer(folder, options.chat_template)
    return Opened(build(described, tensors), tokenizer, options)


def _is_plain(folder: Path) -> bool:
    """Whether a folder holds whole weights in GRM's layout, or a model of a kind that only we have."""
    if read_kind(folder) != "reward":
        return True
    if (folder / ADAPTER_CONFIG).exists() or (folder / "modeling_grm.py").exists():
        return False
    with contextlib.suppress(ValueError):
        return any(name.startswith(HEAD_PREFIX) for name in tensor_names(folder))
    return False


def _copy_model(folder: Path, out: Path) -> None:
    hidden = temporary_sibling(out)
    try:
        shutil.copytree(folder, hidden)
        publish_model(hidden, out)
    finally:
        remove(hidden)


def model_folder(path: Path) -> Path:
    """The model folder that a path means: itself, or the `model/` of a run directory.

    Errors: ValueError if there is none.
    """
    if (folder := finished_model(path)) is None:
        raise ValueError(f"{path}: holds no model (no config.json); give a run directory or a model folder")
    return folder


def load_options(directory: Path) -> PrepareOptions:
    """The preparation options a model was trained with; for a folder of another origin the defaults.

    The GRM authors' models read the text of their own code, which is `paper_text`.
    """
    path = directory / OPTIONS_FILE
    if not path.exists():
        return PrepareOptions(paper_text=by_grm_authors(directory))
    try:
        options = PrepareOptions(**json.loads(path.read_text(encoding="utf-8"))["prepare"])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as preparation options ({error}); copy the model again") from error
    warn_of_text(directory, options)
    return options
