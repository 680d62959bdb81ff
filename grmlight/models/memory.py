"""What training a model needs, by arithmetic, before anything is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from grmlight.models.backbone import BackboneConfig, read_config
from grmlight.models.ensemble_config import EnsembleConfig
from grmlight.models.lora import LoraOptions

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Parameters of a backbone and the memory of its training state.

    Attributes:
        parameters: all of them.
        trainable: those that learn; LoRA's adapters come on top of `parameters`.
        state_bytes: weights, and for what learns a gradient and AdamW's two moments; activations are not in it.
    """

    parameters: int
    trainable: int
    state_bytes: int

    def describe(self, devices: int) -> str:
        """One line: what the training state takes, the GPUs of 80 GB that hold it, and each device's share."""
        total = self.state_bytes / 1e9
        line = (
            f"memory: {self.trainable:,} of {self.parameters:,} backbone parameters learn; weights, gradients and "
            f"AdamW take {total:.3g} GB, activations aside"
        )
        if (gpus := math.ceil(total / 80)) > 1:
            line += f": at least {gpus} GPUs of 80 GB"
        return (
            line if devices == 1 else f"{line}; {total / devices:.3g} GB on each of {devices} under configs/fsdp.yaml"
        )


def training_memory(
    options: BackboneConfig,
    ensemble: EnsembleConfig | None = None,
    adapters: int = 1,
    guests: Sequence[LoraOptions] = (),
) -> TrainingMemory:
    """Count on the meta device, where parameters have a shape and no storage.

    Args:
        options: the backbone.
        ensemble: its members, if it is one.
        adapters: how many sets of LoRA's adapters it has, if any.
        guests: adapters of reward models that share it, and do not learn.

    Errors: ValueError as `read_config`.
    """
    config = read_config(options)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    copies = ensemble.trunks if ensemble else 1
    parameters = copies * sum(parameter.numel() for parameter in lm.parameters())
    width = _BYTES[options.dtype]
    if options.frozen:
        return TrainingMemory(parameters, 0, parameters * width)
    if options.lora is None:
        return TrainingMemory(parameters, parameters, parameters * 4 * width)
    sets = adapters * (ensemble.size if ensemble and ensemble.members == "adapters" else copies)
    trainable = sets * _adapter_size(lm, options.lora)
    still = sum(_adapter_size(lm, guest) for guest in guests)
    return TrainingMemory(parameters, trainable, parameters * width + trainable * 16 + still * 4)


def _adapter_size(lm: nn.Module, lora: LoraOptions) -> int:
    """Parameters of one set of adapters."""
    targets = tuple(f".{target}" for target in lora.targets)
    return sum(
        lora.r * sum(layer.weight.shape)
        for name, layer in lm.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and f".{name}".endswith(targets)
    )


@dataclasses.dataclass(frozen=True)
class Setting:
    """What decides how much memory a run takes, beside its backbone.

    Attributes:
        accumulate: packs of a step on each device.
        pairs: pairs of one pack, at most.
        bf16: whether it computes in bf16.
        sharded: whether weights and optimizer states are shared out over devices.
        longest: tokens of the longest pair, where they are known.
        device_bytes: memory of one device, where it is known.
        devices: their number.
    """

    accumulate: int
    pairs: int
    bf16: bool
    sharded: bool
    longest: int | None = None
    device_bytes: int | None = None
    devices: int = 1


def memory_advice(
    options: BackboneConfig, setting: Setting, ensemble: EnsembleConfig | None = None, adapters: int = 1
) -> list[str]:
    """What would make a run fit that does not, the most effective first; only what is not in use yet.

    Args:
        options: see `training_memory`.
        setting: the rest.
        ensemble: see `training_memory`.
        adapters: see `training_memory`.
    """
    state = training_memory(options, ensemble, adapters).state_bytes / (setting.devices if setting.sharded else 1)
    bf16_weights = options.dtype == "float32" and (options.lora is not None or options.frozen)
    activations = {
        f"trainer.accumulate_grad_batches: {2 * setting.accumulate} (the same result from {setting.pairs // 2 or 1} "
        f"instead of {setting.pairs} pairs at once)": setting.pairs > 1,
        "backbone.gradient_checkpointing: true (a third more time)": not options.gradient_checkpointing,
        "trainer.precision: bf16-mixed": not setting.bf16 and not setting.sharded,
        f"data.init_args.prepare.max_length below {setting.longest}, the tokens of the longest pair": bool(
            setting.longest
        ),
    }
    states = {
        "ensemble.members: heads (one backbone for all members)": ensemble is not None and ensemble.trunks > 1,
        "backbone.lora: {} (adapters alone learn)": options.lora is None and not options.frozen,
        "backbone.dtype: bfloat16 (frozen weights take half)": bf16_weights,
        "configs/fsdp.yaml (each device holds a part of the weights)": not setting.sharded,
    }
    large = setting.device_bytes is not None and state > 0.8 * setting.device_bytes
    return [text for text, helps in (states | activations if large else activations | states).items() if helps]


def device_memory(device: torch.device) -> int | None:
    """Bytes of a GPU, or of this machine; None for other devices."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device.type == "cpu" else None


def is_memory_error(error: RuntimeError) -> bool:
    """Whether it is an allocation that failed, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextlib.contextmanager
def memory_errors(advice: Callable[[], str]) -> Iterator[None]:
    """Turn an allocation that failed, on a GPU or on the CPU, into a ValueError of one line.

    Args:
        advice: asked for what to say after "out of memory".
    """
    try:
        yield
    except RuntimeError as error:
        if not is_memory_error(error):
            raise
        raise ValueError(f"out of memory{advice()}") from error
