"""Small copies of models: every kind of layer kept, few of each, with random weights. What the gate probes."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

WINDOW = 7
"""A twin's largest sliding window."""

MIN_LAYERS = 4

MIN_POSITIONS = 64
"""More than a probe's longest sequence has: beyond its positions a model may be right about nothing."""

MAX_PARAMETERS = 2**27
"""Of a twin; a larger one would make a probe slow."""

_MAX_SIZES = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 128),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("ffn_hidden_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k", "n_group"), 2),
    "topk_group": 1,
}


def shrink(config: PretrainedConfig) -> PretrainedConfig:
    """A small copy: few heads of the same size, few layers of every kind, windows shorter than the probe's prompts."""
    config = copy.deepcopy(config)
    # Of an encoder-decoder's config, the decoder's is but a copy.
    text = config if config.is_encoder_decoder else config.get_text_config(decoder=True)
    kinds, layers = layer_types(text), text.num_hidden_layers
    needed = 1 + max((kinds.index(kind) for kind in set(kinds)), default=0)
    kept = min(layers, max(needed, MIN_LAYERS))
    if getattr(text, "num_kv_shared_layers", 0):
        # The last layers borrow keys of earlier ones of their kind.
        text.num_kv_shared_layers, kept = 1, min(layers, kept + 1)
    _cut_layers(text, layers, kept)
    _cut_heads(text)
    _cut_sizes(text)
    if getattr(text, "max_position_embeddings", None) is not None:
        text.max_position_embeddings = max(text.max_position_embeddings, MIN_POSITIONS)
    for name in config.sub_configs:
        # Eyes and ears, which no text comes by.
        if getattr(config, name, None) is not text and hasattr(getattr(config, name, None), "num_hidden_layers"):
            getattr(config, name).num_hidden_layers = 1
    if getattr(text, "sliding_window", None) is not None:
        text.sliding_window = min(text.sliding_window, WINDOW)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(text, name, None) is not None:
            setattr(text, name, 0)
    return config


def build(config: PretrainedConfig, attention: str | None) -> PreTrainedModel:
    """A twin in float32 and eval mode whose weights are large enough for every part to show.

    Raises:
        ValueError: it would be larger than `MAX_PARAMETERS`.
    """
    config = copy.deepcopy(config)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    if (size := sum(parameter.numel() for parameter in empty.parameters())) > MAX_PARAMETERS:
        raise ValueError(f"it would have {size / 1e6:.0f} million parameters")
    twin = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()
    for parameter in twin.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return twin


def layer_types(config: PretrainedConfig) -> list[str]:
    """The kind of each layer, if the config names them."""
    return list(getattr(config.get_text_config(decoder=True), "layer_types", None) or [])


def _cut_layers(text: PretrainedConfig, layers: int, kept: int) -> None:
    """Keep the first layers, in every list that has one entry a layer."""
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == layers:
            setattr(text, name, value[:kept])
    for name in ("num_hidden_layers", "encoder_layers", "decoder_layers"):
        if getattr(text, name, None) is not None:
            setattr(text, name, kept)


def _cut_sizes(text: PretrainedConfig) -> None:
    """Vocabulary, widths and experts, whether one number says them or one a layer."""
    for name, size in _MAX_SIZES.items():
        value = getattr(text, name, None)
        if isinstance(value, int):
            setattr(text, name, min(value, size))
        elif isinstance(value, list):
            setattr(text, name, [min(each, size) for each in value])


def _cut_heads(text: PretrainedConfig) -> None:
    """At most two key heads with at most two query heads each; their size stays, as rotary tables depend on it."""
    heads = getattr(text, "num_attention_heads", None)
    if heads is None:
        return
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    kept_keys = min(key_heads, 2)
    kept = kept_keys * min(heads // key_heads, 2)
    text.hidden_size = text.hidden_size // heads * kept
    for name in ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"):
        if getattr(text, name, None) is not None:
            setattr(text, name, kept)
    if getattr(text, "num_key_value_heads", None) is not None:
        text.num_key_value_heads = kept_keys
