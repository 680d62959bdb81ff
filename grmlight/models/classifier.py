"""A reward model as a sequence classifier for transformers and for what builds on it.

A linear head becomes the standard class's `score`, which has no bias: the head's bias, a constant that changes no
preference, is left out for every reader alike, ours included, and written to the config as `vhead_bias`. An MLP head,
and a linear one on an architecture that has no standard class, comes with a class of its own (`modeling_grm.py`), which
readers must allow with trust_remote_code.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from grmlight.models import modeling_grm
from grmlight.models.backbone import FOREIGN_PREFIX, GUARD, HEAD_PREFIX, KEEPS_LM_HEAD, check_loaded
from grmlight.models.checkpoint import final_head, head_entries, merged, publish_model
from grmlight.models.hidden import SKIPPED_TOKEN
from grmlight.models.reward_model import RewardModel

HEAD_BIAS = "vhead_bias"
"""Entry of a classifier's config: the constant that its last layer, which has no bias, leaves out."""

_AUTO_MAP = {"AutoModelForSequenceClassification": "modeling_grm.GRMForSequenceClassification"}


def save_classifier(model: RewardModel, directory: Path, tokenizer: Any, pad: int) -> None:
    """Write the folder, adapters merged; config.json comes last.

    Args:
        model: the reward model.
        directory: the folder.
        tokenizer: its tokenizer, with the pad token set.
        pad: id of the pad token. Embeddings get rows of zeros up to it.
    """
    tensors, config = classifier_parts(model, pad)
    classifier = _empty(config)
    expected = classifier.state_dict()
    kept = {name: tensor for name, tensor in tensors.items() if name in expected}
    misshapen = {name for name in kept if kept[name].shape != expected[name].shape}
    check_loaded(f"classifier of {config.model_type}", expected.keys() - kept.keys(), set(), misshapen)
    classifier.load_state_dict(kept, assign=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as temporary:
        part = Path(temporary)
        shipped = isinstance(classifier, modeling_grm.GRMForSequenceClassification)
        guard = {GUARD: torch.zeros(1, 1)} if shipped else {}
        classifier.save_pretrained(part, state_dict={**classifier.state_dict(), **guard})
        tokenizer.save_pretrained(part)
        if shipped:
            (part / "modeling_grm.py").write_text(_modeling_file(config.model_type), encoding="utf-8")
        publish_model(part, directory)


def classifier_config(model: RewardModel, pad: int) -> PretrainedConfig:
    """The config of a model's classifier: one label, taken as it is, and the pad token."""
    # From its entries, so that it does not say which kernels this model happens to use.
    config = type(model.lm.config).from_dict(copy.deepcopy(model.lm.config.to_dict()))
    config.num_labels = 1
    # vLLM and transformers' pipelines give such a model's output without a sigmoid.
    config.problem_type = "regression"
    text = config.get_text_config(decoder=True)
    text.pad_token_id = config.pad_token_id = pad
    text.vocab_size = max(text.vocab_size, pad + 1)
    # OpenRLHF's mean and standard deviation are in the head now.
    for name in (FOREIGN_PREFIX, SKIPPED_TOKEN, "normalize_reward", "mean", "std", "value_head_prefix"):
        if hasattr(config, name):
            delattr(config, name)
    return config


def classifier_parts(model: RewardModel, pad: int) -> tuple[dict[str, Tensor], PretrainedConfig]:
    """A classifier's tensors, adapters merged, and its config."""
    lm, config = merged(model), classifier_config(model, pad)
    tensors = {name: tensor.detach() for name, tensor in lm.state_dict().items()}
    embeddings = lm.get_input_embeddings().weight
    for name, parameter in lm.named_parameters(remove_duplicate=False):
        if parameter is embeddings and pad >= len(parameter):
            rows = parameter.new_zeros(pad + 1 - len(parameter), parameter.shape[1])
            tensors[name] = torch.cat([parameter.detach(), rows])
    head = final_head(model)
    if model.head_config.kind == "linear" and is_standard(config):
        setattr(config, HEAD_BIAS, float(head["summary.bias"]))
        return tensors | {"score.weight": head["summary.weight"]}, config
    for name, value in head_entries(model.head_config).items():
        setattr(config, name, value)
    if not config.tie_word_embeddings:
        setattr(config, KEEPS_LM_HEAD, False)
    config.auto_map = _AUTO_MAP
    return tensors | {HEAD_PREFIX + name: tensor for name, tensor in head.items()}, config


def _modeling_file(model_type: str) -> str:
    """The class's file for one architecture: transformers asks a class for the config that it belongs to."""
    named = f"GRMForSequenceClassification.config_class = CONFIG_MAPPING[{model_type!r}]"
    return f"{inspect.getsource(modeling_grm)}\n\n{named}\n"


def is_standard(config: PretrainedConfig) -> bool:
    """Whether transformers has a sequence classifier of a config's architecture."""
    return type(config) in AutoModelForSequenceClassification._model_mapping


def _empty(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        if getattr(config, "auto_map", None) == _AUTO_MAP:
            return modeling_grm.GRMForSequenceClassification(config)
        return AutoModelForSequenceClassification.from_config(config)
