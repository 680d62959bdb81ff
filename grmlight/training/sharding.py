"""Sharded training (FSDP2): Lightning's strategy with strict and safe checkpoints, and what it replaces.

Notable decisions:

- A checkpoint loads at any number of ranks, from a folder of shards or from a single file, whichever strategy wrote it.
- Names and shapes are compared before the first tensor is read, so a checkpoint of another model is one line.
- Optimizer states are matched by the parameters' names, so frozen ones may lie between those that train, and those that
  no step has met yet have none: a module says which, since torch would make states up for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from grmlight.data.files import remove
from grmlight.models.backbone import check_loaded
from grmlight.models.shards import load_shards, read_meta, shapes, states_by_index, states_by_name
from grmlight.training.checkpoints import unwritten
from grmlight.training.description import left_out

USE_FSDP2 = "FSDP1 is not offered; drop the strategy and append --config configs/fsdp.yaml, which is FSDP2"
_SHARDED = "grmlight.training.sharding.FullySharded"
UNSTEPPED = "grmlight_unstepped"
"""A checkpoint's entry: trainable parameters that have no optimizer state yet, by name."""


class FullySharded(ModelParallelStrategy):
    """FSDP2 over `data_parallel_size` ranks: Lightning's ModelParallelStrategy with its arguments.

    Set `data_parallel_size` to devices x num_nodes and `tensor_parallel_size` to 1.
    """

    def setup_environment(self) -> None:
        """Take Lightning's "auto" as all ranks.

        Errors: ValueError if the ranks would not all share one model.
        """
        ranks = self.num_processes * self.num_nodes
        if self._data_parallel_size == "auto" and self._tensor_parallel_size == "auto":
            self._data_parallel_size, self._tensor_parallel_size = ranks, 1
        if (self._data_parallel_size, self._tensor_parallel_size) != (ranks, 1):
            raise ValueError(
                f"trainer.strategy: {ranks} processes share one model; set data_parallel_size to {ranks} "
                f"(it is {self._data_parallel_size}) and tensor_parallel_size to 1 (it is {self._tensor_parallel_size})"
            )
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint, each rank its part.

        Errors: ValueError on every rank if one cannot write its shard; nothing of it stays.
        """
        try:
            super().save_checkpoint(checkpoint, filepath, storage_options)
        except (CheckpointException, RuntimeError, OSError) as error:
            path = Path(filepath)
            if self.is_global_zero and path.exists():
                remove(path)
            raise unwritten(path, error) from error

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and optimizers, each rank its part; what else the checkpoint holds.

        Errors: ValueError if it is of another model, or cannot be read safely.
        """
        path = Path(self.broadcast(checkpoint_path))
        return self._load_shards(path) if path.is_dir() else self._load_file(path)

    def _load_shards(self, folder: Path) -> dict[str, Any]:
        meta = read_meta(folder)
        module = self.lightning_module
        assert module is not None
        state = get_model_state_dict(module)
        kept = {name: tensor for name, tensor in state.items() if name not in left_out(meta)}
        check_shapes(folder, kept, shapes(folder, "state_dict."))
        load_shards({"state_dict": kept}, folder)
        module.load_state_dict(state)
        for index, optimizer in enumerate(self.optimizers):
            name = f"optimizer_{index}"
            states: dict[str, Any] = {name: get_optimizer_state_dict(module, optimizer)}
            for unstepped in meta.get(UNSTEPPED, ()):
                states[name]["state"].pop(unstepped, None)
            load_shards(states, folder)
            _set_states(module, optimizer, states[name], meta, whole=False)
        return meta

    def _load_file(self, path: Path) -> dict[str, Any]:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        module = self.lightning_module
        assert module is not None
        state = get_model_state_dict(module)
        found = checkpoint.pop("state_dict")
        expected = {name: tensor for name, tensor in state.items() if name not in left_out(checkpoint)}
        check_shapes(path, expected, {name: tensor.shape for name, tensor in found.items()})
        set_model_state_dict(module, found, options=StateDictOptions(full_state_dict=True, strict=False))
        for optimizer, states in zip(
            self.optimizers, checkpoint.pop("optimizer_states", []), strict=bool(self.optimizers)
        ):
            named = states_by_name(states, _names(module, optimizer))
            _set_states(module, optimizer, named, checkpoint, whole=True)
        return checkpoint

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's state: this rank's shards, or for a single file all of it, as other strategies write it."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        module = self.lightning_module
        assert module is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(module, optimizer, options=options)
        return states_by_index(state) if self.global_rank == 0 else {}


def check_trainer(trainer: Trainer) -> None:
    """Refuse what would train otherwise than it seems.

    Errors: ValueError for FSDP1, for Lightning's own FSDP2, and for weights that have no float32 masters.
    """
    if isinstance(trainer.strategy, FSDPStrategy):
        raise ValueError(USE_FSDP2)  # noqa: TRY004
    if isinstance(trainer.strategy, ModelParallelStrategy) and not isinstance(trainer.strategy, FullySharded):
        raise ValueError(f"use {_SHARDED} in the place of ModelParallelStrategy, with the same arguments")  # noqa: TRY004
    check_precision(trainer.precision)
    if (trainer.gradient_clip_val or 0) < 0:
        raise ValueError(f"trainer.gradient_clip_val: must not be negative, got {trainer.gradient_clip_val}")


def check_precision(precision: Any) -> None:
    """Refuse precisions that leave no float32 weights, or whose gradients overflow by design.

    Errors: ValueError in one line.
    """
    name = str(precision or "")
    if name in ("16-mixed", "16"):
        raise ValueError(
            f"precision {name} scales the loss until gradients overflow, which would count as not finite; set "
            "trainer.precision to bf16-mixed"
        )
    if name in ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16"):
        raise ValueError(
            f"precision {name} would leave no float32 weights to train; set trainer.precision to "
            "bf16-mixed, and backbone.dtype to bfloat16 for a frozen backbone of half the size"
        )


def check_strategy(strategy: Any) -> None:
    """Refuse a strategy of a configuration before it is made.

    Errors: ValueError in one line for FSDP1.
    """
    name = str(strategy.class_path if hasattr(strategy, "class_path") else strategy or "").rpartition(".")[2]
    if name.lower().startswith("fsdp"):
        raise ValueError(f"trainer.strategy {name}: {USE_FSDP2}")


def check_shapes(path: Path, expected: Mapping[str, Any], found: Mapping[str, torch.Size]) -> None:
    """Compare names and shapes of tensors. Errors: ValueError that names what differs."""
    misshapen = {name for name in expected.keys() & found.keys() if expected[name].shape != found[name]}
    what = f"the checkpoint {path} is of another model"
    check_loaded(what, set(expected.keys() - found.keys()), set(found.keys() - expected.keys()), misshapen)


def _set_states(
    module: torch.nn.Module, optimizer: Optimizer, states: dict[str, Any], checkpoint: Mapping[str, Any], whole: bool
) -> None:
    """Give an optimizer its states by name, and none to parameters that had none."""
    unstepped = frozenset(checkpoint.get(UNSTEPPED, ()))
    options = StateDictOptions(full_state_dict=whole, strict=not unstepped)
    set_optimizer_state_dict(module, optimizer, states, options=options)
    for name, parameter in module.named_parameters():
        if name in unstepped:
            optimizer.state.pop(parameter, None)


def _names(module: torch.nn.Module, optimizer: Optimizer) -> list[str]:
    """The names of an optimizer's parameters, in the order of their indices."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
