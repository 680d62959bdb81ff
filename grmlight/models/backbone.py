"""Loading the backbone: a Hugging Face causal LM, strictly, with LoRA or in full.

Notable decisions:

- Strict: a tensor that is missing or left over is an error that names it. Only safetensors, but for reward models that
  were released before them; no remote code.
- Random weights (a model from a config, LoRA's) depend on the seed alone, and leave the caller's generators alone.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from grmlight.data.names import resolve
from grmlight.models.lora import LoraOptions, with_adapters
from grmlight.models.modes import seeded

HEAD_PREFIX = "v_head."
"""Where the GRM authors' models, and ours, keep the reward head's tensors."""

KEEPS_LM_HEAD = "vhead_keeps_lm_head"
"""Entry of a config, false for a model that came without its LM head: a sequence classifier."""

FOREIGN_PREFIX = "vhead_prefix"
"""Entry of a config: where else the folder keeps the reward head's tensors."""

SHIPPED_CLASS = "GRMForSequenceClassification"
"""The class that exported MLP classifiers bring along."""

GUARD = "score.weight"
"""A tensor of an impossible shape in their folders: a reader that may not run their class takes transformers' own,
which would else draw a random head and say nothing."""

_HEAD_ENTRIES = "vhead_"

_PARAMETERS = ("weight", "bias")

_LEGACY_KEYS = frozenset({"rope_theta", "rope_scaling"})


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
    # Code of its own is never run, so a copy must not ask for it.
    entries.pop("auto_map", None)
    named = {name for name in overrides if not name.startswith(_HEAD_ENTRIES)}
    unknown = sorted(named - known - entries.keys() - {"model_type"})
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
        if not keeps_language_head(config):
            lm.set_output_embeddings(None)
        if options.gradient_checkpointing:
            enable_checkpointing(lm)
        if options.frozen:
            lm.requires_grad_(False)
    if options.lora is None:
        return lm.train()
    # Seeded anew: adapters depend on the seed alone, whatever loading has drawn.
    with seeded(seed), torch.device("cpu"):
        return with_adapters(lm, options.lora).train()


def language_head(lm: PreTrainedModel) -> nn.Linear:
    """The layer that makes logits of hidden states. ValueError if the model has none of the usual kind."""
    head = lm.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise ValueError(f"{type(lm).__name__} has no LM head of the usual kind; choose a causal LM that has one")
    assert isinstance(head, nn.Linear)
    return head


def hidden_size(lm: PreTrainedModel) -> int:
    """Size of the states that the reward head reads."""
    if keeps_language_head(lm.config):
        return language_head(lm).weight.shape[-1]
    return lm.config.get_text_config(decoder=True).hidden_size


def embedding_rows(lm: PreTrainedModel) -> int:
    """Rows of the input embeddings: ids beyond them cannot be given."""
    weight = lm.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]


def keeps_language_head(config: PretrainedConfig) -> bool:
    """Whether a model of this config has its LM head: sequence classifiers have lost it unless it was tied."""
    return bool(getattr(config, KEEPS_LM_HEAD, True))


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
    level, is_reward = report.level, hasattr(config, "vhead_layer_type")
    report.setLevel(logging.ERROR)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            resolve(options.name, "backbone"),
            config=config,
            revision=options.revision,
            dtype=getattr(torch, options.dtype),
            attn_implementation=attention,
            use_safetensors=not (is_reward and _only_bin(options.name)),
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except OSError as error:
        raise ValueError(_unreadable(options.name, _one_line(error))) from error
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"backbone {options.name!r}: its weights cannot be read ({_one_line(error)})") from error
    except RuntimeError as error:
        raise ValueError(f"backbone {options.name!r}: {_one_line(error)}") from error
    finally:
        report.setLevel(level)
    lm, info = loaded
    unexpected = set(info["unexpected_keys"])
    if is_reward:
        prefix = getattr(config, FOREIGN_PREFIX, HEAD_PREFIX)
        guards = {GUARD} if SHIPPED_CLASS in (config.architectures or ()) else set()
        unexpected = {name for name in unexpected - guards if not name.startswith(prefix)}
    misshapen = {name for name, *_ in info["mismatched_keys"]}
    missing = set(info["missing_keys"]) - misshapen
    if not keeps_language_head(config):
        head = language_head(lm)
        missing -= {f"{name}.{part}" for name, layer in lm.named_modules() if layer is head for part in _PARAMETERS}
    check_loaded(f"backbone {options.name!r}", missing, unexpected, misshapen)
    return lm


def _only_bin(name: str) -> bool:
    """Whether a released reward model is of the older kind, which transformers then reads without running code."""
    folder = Path(resolve(name, "backbone"))
    return bool([*folder.glob("pytorch_model*.bin")]) and not [*folder.glob("*.safetensors")]


def enable_checkpointing(lm: PreTrainedModel, **options: Any) -> None:
    """Compute activations again in backward; options as `torch.utils.checkpoint.checkpoint` takes them."""
    # transformers renamed it within its fifth version.
    enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
    enable({"use_reentrant": False, **options})


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
