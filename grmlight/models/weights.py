"""Tensors of a model folder by name, without building the model: safetensors, or `.bin` files of older releases."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin", *MODEL_FILES)
"""An adapter's tensors; the GRM authors' trainer writes them to a model's file."""


def weight_files(folder: Path, names: tuple[str, ...] = MODEL_FILES) -> list[Path]:
    """The files that hold a folder's weights, shards included; the first of `names` that is there.

    Raises:
        ValueError: there are none, or their index cannot be read.
    """
    for name in names:
        index = folder / f"{name}.index.json"
        if index.exists():
            try:
                return [folder / shard for shard in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{index} cannot be read ({error}); copy the model again") from error
        if (folder / name).exists():
            return [folder / name]
    raise ValueError(f"{folder} holds no weights ({' or '.join(names[:2])}); copy the model again")


def tensor_names(folder: Path, files: tuple[str, ...] = MODEL_FILES) -> set[str]:
    """The names of all tensors of a folder. Raises a ValueError for files that cannot be read."""
    return {name for path in weight_files(folder, files) for name in _walk(path, None)}


def read_tensors(folder: Path, prefix: str = "", files: tuple[str, ...] = MODEL_FILES) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, on the CPU. Raises a ValueError for files that cannot be read."""
    found: dict[str, Tensor] = {}
    for path in weight_files(folder, files):
        found |= {name: tensor for name, tensor in _walk(path, prefix).items() if tensor is not None}
    return found


def _walk(path: Path, prefix: str | None) -> dict[str, Tensor | None]:
    """Every name in a file, with the tensor where the name begins with `prefix`; None wants no tensor."""

    def wanted(name: str) -> bool:
        return prefix is not None and name.startswith(prefix)

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) if wanted(name) else None for name in file.keys()}  # noqa: SIM118
        # Mapped into memory, so that names cost no reading; only files of torch's later format can be.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        return {name: tensor if wanted(name) else None for name, tensor in state.items()}
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} asks for code to be run, which is refused; convert it to safetensors where you trust it"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read ({reason}); copy or train the model again") from error
