"""LoRA adapters on a causal LM: which layers get them, and which of them apply.

Notable decisions:

- Adapters are float32 whatever the backbone's dtype is.
- Sets of adapters are switched by the names and flags that the layers read; `requires_grad` is never touched.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from grmlight.models.modes import seeded


@dataclasses.dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters. The defaults are the paper's.

    Attributes:
        r: rank.
        alpha: scale; the adapters' product is multiplied by alpha / r.
        dropout: on the adapters' input.
        targets: name endings of the linear layers that get adapters.
    """

    r: int = 32
    alpha: int = 64
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


def adaptable(lm: PreTrainedModel, targets: Sequence[str]) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers by name whose names end with one of the targets.

    Raises:
        ValueError: there is none for some target; says which there are.
    """
    output = lm.get_output_embeddings()
    linear = {
        name: layer
        for name, layer in lm.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not output
    }
    absent = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in linear)]
    if absent or not targets:
        available = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ValueError(f"lora.targets: the model has no linear layers {absent}; it has {available}")
    ends = tuple(f".{target}" for target in targets)
    return {name: layer for name, layer in linear.items() if f".{name}".endswith(ends)}


def with_adapters(lm: PreTrainedModel, options: LoraOptions) -> PeftModel:
    """Give a causal LM its adapters, in float32. Errors: see `adaptable`."""
    linear = adaptable(lm, options.targets)
    adapters = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers by a name that it has just renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        model = get_peft_model(lm, adapters, autocast_adapter_dtype=True)
    assert isinstance(model, PeftModel)
    return model


def add_adapters(backbone: PeftModel, seeds: Sequence[int]) -> list[str]:
    """Give a backbone with adapters more of the same shape, all of which learn.

    Args:
        backbone: from `with_adapters`.
        seeds: one a further set of adapters; the same seed as `load_backbone`'s gives the same adapters.

    Returns:
        The names of all sets, the first one's included.
    """
    first, *_ = backbone.peft_config
    learning = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    names = [first, *(f"member_{number}" for number in range(1, len(seeds) + 1))]
    for name, seed in zip(names[1:], seeds, strict=True):
        with seeded(seed), torch.device("cpu"):
            backbone.add_adapter(name, copy.deepcopy(backbone.peft_config[first]))
    # peft lets only the active ones learn; they are switched by `adapter_on`, which leaves that alone.
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name in learning or any(f".{added}." in name for added in names[1:]))
    return names


def tuner_layers(backbone: nn.Module) -> list[BaseTunerLayer]:
    """The layers that have adapters."""
    return [module for module in backbone.modules() if isinstance(module, BaseTunerLayer)]


_on: ContextVar[tuple[Sequence[BaseTunerLayer], str] | None] = ContextVar("adapters of the forward", default=None)


@contextlib.contextmanager
def adapter_on(layers: Sequence[BaseTunerLayer], name: str) -> Iterator[None]:
    """One set of adapters alone, for a while, and again wherever backward computes this forward's activations anew.

    peft's own `set_adapter` also switches `requires_grad`: of several forwards before one backward, all but the last
    would lose their adapters' gradients in silence. So only the name that the layers read is switched.
    """
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = name
    token = _on.set((layers, name))
    try:
        yield
    finally:
        _on.reset(token)
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


def same_adapter() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What gradient checkpointing runs under: forward as it is, in backward with the adapters of that forward."""
    on = _on.get()
    return contextlib.nullcontext(), contextlib.nullcontext() if on is None else adapter_on(*on)


@contextlib.contextmanager
def adapters_off(backbone: nn.Module) -> Iterator[None]:
    """The backbone without its adapters, for a while.

    peft's own `disable_adapter` also switches `requires_grad` of the adapters, which FSDP reads when it first gathers
    a parameter: they would then never train. So only the flag that the layers read is switched.
    """
    layers = tuner_layers(backbone)
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
