"""Loading the backbone: a Hugging Face causal LM, strictly, with LoRA or in full.

Notable decisions:

- Strict: a tensor that is missing or left over is an error that names it. Only safetensors; no remote code.
- Random weights (a model from a config, LoRA's) depend on the seed alone, and leave the caller's generators alone.
- LoRA's weights are float32 whatever the backbone's dtype is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from grmlight.data.names import resolve

HEAD_PREFIX = "v_head."
"""Where the GRM authors' models, and ours, keep the reward head's tensors."""

_LEGACY_KEYS = frozenset({"rope_theta", "rope_scaling"})


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


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Which causal LM, and how it is trained.

    Attributes:
        name: a hub name, a directory, `package:MODULE/PATH` for one that lies inside a package, or empty for a model
            that is made from `config` alone.
        pretrained: load weights; otherwise they are random.
        config: entries that replace those of the model's config; with an empty name all of them, `model_type` included.
        dtype: of the weights. LoRA's and the reward head's are float32 in any case.
        lora: train adapters only; without it everything is trained, the LM head included.
        frozen: train nothing of the backbone.
        gradient_checkpointing: compute activations again in backward: less memory, a third more time.
        revision: of a hub model.
    """

    name: str
    pretrained: bool = True
    config: dict[str, Any] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraOptions | None = None
    frozen: bool = False
    gradient_checkpointing: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.frozen and self.lora is not None:
            raise ValueError("backbone: frozen and lora exclude each other; drop one of them")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"backbone: dtype must be 'float32' or 'bfloat16', got {self.dtype!r}")
        if not self.name and (self.pretrained or "model_type" not in (self.config or {})):
            raise ValueError("backbone: without a name it needs pretrained: false and a config with model_type")


def read_config(options: BackboneConfig) -> PretrainedConfig:
    """The model's config, with the entries of `options.config` in place of its own.

    Raises:
        ValueError: nothing to read, an unknown model type, or an entry that this model type does not know.
    """
    overrides = dict(options.config or {})
    entries: dict[str, Any] = {}
    if options.name:
        try:
            entries, _ = PretrainedConfig.get_config_dict(resolve(options.name, "backbone"), revision=options.revision)
        except OSError as error:
            raise ValueError(_unreadable(options.name, _one_line(error))) from error
        if "model_type" not in entries:
            raise ValueError(_unreadable(options.name, "it has no config.json with a model_type."))
    model_type = str(overrides.get("model_type", entries.get("model_type")))
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"backbone {options.name!r}: transformers knows no model_type {model_type!r}")
    config_class = CONFIG_MAPPING[model_type]
    known = vars(config_class()).keys() | config_class.attribute_map.keys() | _LEGACY_KEYS
    unknown = sorted(overrides.keys() - known - entries.keys() - {"model_type"})
    if unknown:
        raise ValueError(f"backbone config: {model_type} has no entries {unknown}; check their names")
    try:
        return config_class.from_dict({**entries, **overrides})
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"backbone config of {model_type}: {_one_line(error)}") from error


def load_backbone(
    options: BackboneConfig, config: PretrainedConfig, attention: str | None = None, seed: int = 0
) -> PreTrainedModel | PeftModel:
    """Build the causal LM on the CPU, in training mode.

    Args:
        options: which model, and what of it is trained.
        config: from `read_config`.
        attention: name of the attention implementation, or None for the model's own.
        seed: of random weights.

    Raises:
        ValueError: weights that do not fit or are not there, LoRA targets that the model does not have.
    """
    with seeded(seed), torch.device("cpu"):
        if options.pretrained:
            lm = _load(options, config, attention)
        else:
            dtype = getattr(torch, options.dtype)
            lm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        if options.gradient_checkpointing:
            enable_checkpointing(lm)
        if options.frozen:
            lm.requires_grad_(False)
        return (lm if options.lora is None else _with_adapters(lm, options.lora)).train()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's generator for a while; no generator of the caller's is changed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def adapters_off(backbone: nn.Module) -> Iterator[None]:
    """The backbone without its adapters, for a while.

    peft's own `disable_adapter` also switches `requires_grad` of the adapters, which FSDP reads when it first gathers
    a parameter: they would then never train. So only the flag that the layers read is switched.
    """
    layers = [module for module in backbone.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def language_head(lm: PreTrainedModel) -> nn.Linear:
    """The layer that makes logits of hidden states. ValueError if the model has none of the usual kind."""
    head = lm.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise ValueError(f"{type(lm).__name__} has no LM head of the usual kind; choose a causal LM that has one")
    assert isinstance(head, nn.Linear)
    return head


def decoder(lm: PreTrainedModel) -> nn.Module:
    """The part of a causal LM that ends in hidden states, before the LM head."""
    found = lm.get_decoder()
    if found is not lm:
        return found
    # Where transformers' own look-up finds nothing, it gives back the whole model.
    parts = [part for part in lm.children() if isinstance(part, PreTrainedModel)]
    if len(parts) != 1:
        raise ValueError(f"{type(lm).__name__} has no decoder in the usual place; choose another causal LM")
    return parts[0]


def check_loaded(what: str, missing: set[str], unexpected: set[str], misshapen: set[str]) -> None:
    """Raise a ValueError that names tensors which are missing, left over, or of another shape than the config says."""
    found = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    problems = [f"{kind} {_some(names)}" for kind, names in found if names]
    if problems:
        raise ValueError(f"{what}: the weights do not fit the model: {'; '.join(problems)}")


def _load(options: BackboneConfig, config: PretrainedConfig, attention: str | None) -> PreTrainedModel:
    # Its table of what did not fit would repeat the error below, and show a reward head as a fault.
    report = logging.getLogger("transformers.modeling_utils")
    level = report.level
    report.setLevel(logging.ERROR)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            resolve(options.name, "backbone"),
            config=config,
            revision=options.revision,
            dtype=getattr(torch, options.dtype),
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except OSError as error:
        raise ValueError(_unreadable(options.name, _one_line(error))) from error
    except SafetensorError as error:
        raise ValueError(f"backbone {options.name!r}: its weights cannot be read ({_one_line(error)})") from error
    except RuntimeError as error:
        raise ValueError(f"backbone {options.name!r}: {_one_line(error)}") from error
    finally:
        report.setLevel(level)
    lm, info = loaded
    unexpected = set(info["unexpected_keys"])
    if hasattr(config, "vhead_layer_type"):
        unexpected = {name for name in unexpected if not name.startswith(HEAD_PREFIX)}
    misshapen = {name for name, *_ in info["mismatched_keys"]}
    check_loaded(f"backbone {options.name!r}", set(info["missing_keys"]) - misshapen, unexpected, misshapen)
    return lm


def adaptable(lm: PreTrainedModel, targets: Sequence[str]) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers by name whose names end with one of the targets.

    Raises:
        ValueError: there is none for some target; says which there are.
    """
    output = language_head(lm)
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


def enable_checkpointing(lm: PreTrainedModel, **options: Any) -> None:
    """Compute activations again in backward; options as `torch.utils.checkpoint.checkpoint` takes them."""
    # transformers renamed it within its fifth version.
    enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
    enable({"use_reentrant": False, **options})


def _with_adapters(lm: PreTrainedModel, options: LoraOptions) -> PeftModel:
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


def _unreadable(name: str, reason: str) -> str:
    return (
        f"backbone {name!r} cannot be read: {reason} Give a directory with config.json and safetensors "
        "weights, or the name of a hub model that has them and can be reached"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _some(names: set[str], shown: int = 5) -> str:
    ordered = sorted(names)
    rest = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ", ".join(ordered[:shown]) + rest
