"""Folders of shards: checkpoints that each rank wrote its part of, in the layout of torch.distributed.checkpoint.

That layout keeps its index as a pickle, and values that are no tensors as pickles too. Only plain data is read of them:
the index by an unpickler that knows the index's own classes alone, everything else with `weights_only=True`.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

META_FILE = "meta.pt"
"""What a checkpoint holds beside tensors; Lightning's name for it."""

_INDEX_FILE = ".metadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_INDEX_CLASSES = frozenset(
    {
        *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
        *((_METADATA, name) for name in ("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")),
        (_METADATA, "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
        ("collections", "OrderedDict"),
        *(("torch", name) for name in ("float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool")),
    }
)


def is_shards(path: Path) -> bool:
    """Whether a path is meant as a folder of shards, complete or not."""
    return path.is_dir() and any(any(path.glob(name)) for name in (META_FILE, _INDEX_FILE, "*.distcp"))


def read_plain(path: Path, mmap: bool = False) -> Any:
    """Tensors and plain data that `torch.save` wrote; with `mmap` the tensors stay on disk.

    Raises:
        ValueError: the file is cut off, is no such file, or asks for code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (EOFError, OSError, RuntimeError) as error:
        denied = error.strerror if isinstance(error, PermissionError) else ""
        reason = denied or "it is empty, cut off, or not what torch.save writes"
        raise ValueError(f"{path}: cannot be read safely ({reason})") from error
    except (pickle.UnpicklingError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read safely (it holds more than tensors and plain data)") from error


def read_index(folder: Path) -> Metadata:
    """Which tensors a folder holds, and where.

    Raises:
        ValueError: there is no index, it cannot be read, or it asks for code.
    """
    try:
        with (folder / _INDEX_FILE).open("rb") as file:
            index = _IndexUnpickler(file).load()
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: is no complete folder of shards (no {_INDEX_FILE})") from error
    except Exception as error:  # a broken pickle raises nearly anything
        raise ValueError(f"{folder}: its {_INDEX_FILE} cannot be read safely ({_first_line(error)})") from error
    if not isinstance(index, Metadata) or not isinstance(index.storage_data, dict):
        raise ValueError(f"{folder}: its {_INDEX_FILE} is no index of shards")  # noqa: TRY004
    return index


def read_meta(folder: Path) -> dict[str, Any]:
    """What a folder holds beside tensors.

    Raises:
        ValueError: there is none, or it cannot be read safely.
    """
    if not (folder / META_FILE).is_file():
        raise ValueError(f"{folder}: is no complete folder of shards (no {META_FILE})")
    found = read_plain(folder / META_FILE)
    if not isinstance(found, dict):
        raise ValueError(f"{folder}: its {META_FILE} is none of a run")  # noqa: TRY004
    return found


def check_shards(folder: Path) -> dict[str, Any]:
    """Make sure that every shard is there and as long as the index says; what the folder holds beside tensors.

    Raises:
        ValueError: something is missing, cut off, or unsafe; names it.
    """
    meta, index = read_meta(folder), read_index(folder)
    ends: dict[str, int] = {}
    for place in index.storage_data.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in sorted(ends.items()):
        shard = folder / name
        if not shard.is_file() or shard.stat().st_size < end:
            raise ValueError(f"{folder}: its shard {name} is {'cut off' if shard.is_file() else 'missing'}")
    return meta


def shapes(folder: Path, prefix: str) -> dict[str, torch.Size]:
    """The shapes of the tensors whose names begin with `prefix`, by the rest of their names."""
    entries = read_index(folder).state_dict_metadata.items()
    return {
        name.removeprefix(prefix): entry.size
        for name, entry in entries
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The whole tensors whose names begin with `prefix`, put together in one process, by the rest of their names."""
    state: dict[str, Any] = {}
    for name, entry in read_index(folder).state_dict_metadata.items():
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata):
            state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    load_shards(state, folder, alone=True)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def read_whole(folder: Path) -> dict[str, Any]:
    """A folder of shards as the single file that other strategies would have written, put together in one process."""
    index = read_index(folder)
    flat: dict[str, Any] = {}
    for name, entry in index.state_dict_metadata.items():
        tensor = isinstance(entry, TensorStorageMetadata)
        flat[name] = torch.empty(entry.size, dtype=entry.properties.dtype) if tensor else None
    load_shards(flat, folder, alone=True)
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        set_element(nested, index.planner_data[name], value)
    optimizers = [nested[name] for name in sorted(nested) if name.startswith("optimizer_")]
    return read_meta(folder) | {
        "state_dict": nested["state_dict"],
        "optimizer_states": [states_by_index(each) for each in optimizers],
    }


def states_by_index(states: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's states by name as those by index, counted over the parameters of all groups."""
    groups = states["param_groups"]
    index = {name: number for number, name in enumerate(name for group in groups for name in group["params"])}
    return {
        "state": {index[name]: values for name, values in states.get("state", {}).items()},
        "param_groups": [group | {"params": [index[name] for name in group["params"]]} for group in groups],
    }


def states_by_name(states: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The way back; `names` are those of all the groups' parameters.

    Raises:
        ValueError: the optimizer had another number of parameters.
    """
    if len(names) != sum(len(group["params"]) for group in states["param_groups"]):
        raise ValueError("the checkpoint's optimizer trains other parameters; use the same regularizers and lora")
    return {
        "state": {names[index]: values for index, values in states["state"].items()},
        "param_groups": [group | {"params": [names[i] for i in group["params"]]} for group in states["param_groups"]],
    }


def load_shards(state: dict[str, Any], folder: Path, alone: bool = False) -> None:
    """Fill a state dict in place, each rank its part.

    Args:
        state: of any world size; tensors are overwritten.
        folder: the folder of shards.
        alone: in this process only, whatever others there are.

    Raises:
        ValueError: the folder lacks what the state needs, or cannot be read safely.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            load(state, storage_reader=_Reader(folder), planner=_Planner(), no_dist=alone)
        except (CheckpointException, RuntimeError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(f"{folder}: cannot be loaded ({last_line(error)})") from error


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _INDEX_CLASSES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        index = read_index(Path(self.path))
        index.storage_meta = index.storage_meta or StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        plain = torch.load(value, map_location="cpu", weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], plain)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def last_line(error: BaseException) -> str:
    """The last line of an error, which in one of several ranks is the reason."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
