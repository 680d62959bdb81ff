"""What training a model needs, by arithmetic, before anything is loaded."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from grmlight.models.backbone import BackboneConfig, read_config

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


def training_memory(options: BackboneConfig) -> TrainingMemory:
    """Count on the meta device, where parameters have a shape and no storage.

    Errors: ValueError as `read_config`.
    """
    config = read_config(options)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    parameters = sum(parameter.numel() for parameter in lm.parameters())
    width = _BYTES[options.dtype]
    if options.frozen:
        return TrainingMemory(parameters, 0, parameters * width)
    if options.lora is None:
        return TrainingMemory(parameters, parameters, parameters * 4 * width)
    targets = tuple(f".{target}" for target in options.lora.targets)
    adapted = [
        layer for name, layer in lm.named_modules() if isinstance(layer, nn.Linear) and f".{name}".endswith(targets)
    ]
    trainable = sum(options.lora.r * (layer.in_features + layer.out_features) for layer in adapted)
    return TrainingMemory(parameters, trainable, parameters * width + trainable * 16)
