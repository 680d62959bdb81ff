"""Tiny random models of several architectures, for tests."""

from __future__ import annotations

from typing import Any

from grmlight.models import BackboneConfig, HeadConfig, LoraOptions, RewardModel

VOCABULARY = 101
HIDDEN = 32

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_NO_DROPOUT = {"resid_pdrop": 0.0, "attn_pdrop": 0.0}

_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "tie_word_embeddings": True,
    },
    "mistral": {"head_dim": 8, "sliding_window": 4},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "gpt_neox": {"num_key_value_heads": None, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "gemma": {"head_dim": 8, "tie_word_embeddings": True},
    "gemma3_text": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
    },
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phi": {"rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}},
    "phi3": {"sliding_window": 6},
    "olmo2": {},
    "stablelm": {},
    "nemotron": {"head_dim": 8},
    "cohere2": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"], "logit_scale": 0.5},
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.7, "logits_scaling": 2.0},
    "starcoder2": {"sliding_window": 5},
    "gpt_oss": {
        "head_dim": 8,
        "rope_parameters": _ROPE,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "deepseek_v3": {
        "rope_parameters": _ROPE,
        "num_key_value_heads": 4,
        "q_lora_rank": 12,
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "gpt2": {"num_key_value_heads": None, "intermediate_size": None, **_NO_DROPOUT, "embd_pdrop": 0.0},
    "bloom": {"num_key_value_heads": None, "intermediate_size": None, "max_position_embeddings": None},
    "falcon": {"num_key_value_heads": None, "intermediate_size": None},
    "gptj": {"num_key_value_heads": None, "intermediate_size": None, "rotary_dim": 4, "embd_pdrop": 0.0, **_NO_DROPOUT},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 8,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "num_local_experts": 2,
    },
    "mamba": {"num_attention_heads": None, "num_key_value_heads": None, "max_position_embeddings": None},
}

SLIDING = ("gemma2", "gemma3_text", "mistral", "qwen2", "phi3", "cohere2", "starcoder2", "gpt_oss")
PACKABLE = (
    *SLIDING,
    *("llama", "gemma", "qwen3", "qwen3_moe", "mixtral", "phi", "gpt_neox", "gpt2", "olmo2"),
    *("stablelm", "nemotron", "granite", "deepseek_v3"),
)
UNPACKABLE = ("bloom", "falcon", "gptj", "lfm2", "llama4_text", "mamba")

_FUSED = ("query_key_value", "dense")
LORA_TARGETS = {
    "gpt_neox": _FUSED,
    "bloom": _FUSED,
    "falcon": _FUSED,
    "phi": ("q_proj", "k_proj", "v_proj", "dense"),
    "phi3": ("qkv_proj", "o_proj"),
    "deepseek_v3": ("q_a_proj", "q_b_proj", "kv_b_proj", "o_proj"),
    "gpt2": ("c_attn", "c_proj"),
    "gptj": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "lfm2": ("q_proj", "out_proj", "in_proj"),
    "mamba": ("in_proj", "x_proj"),
}


def tiny_config(architecture: str, **entries: Any) -> dict[str, Any]:
    """The config entries of a tiny model, `model_type` included."""
    merged = {"model_type": architecture, **_COMMON, **_CONFIGS[architecture], **entries}
    return {name: value for name, value in merged.items() if value is not None}


def tiny_backbone(
    architecture: str = "llama", lora: bool = False, config: dict[str, Any] | None = None, **options: Any
) -> BackboneConfig:
    """A backbone with random weights; `config` replaces entries, LoRA is of rank 4."""
    adapters = None
    if lora:
        targets = LORA_TARGETS.get(architecture, LoraOptions.targets)
        adapters = LoraOptions(r=4, alpha=8, dropout=0.0, targets=targets)
    entries = tiny_config(architecture, **(config or {}))
    return BackboneConfig(name="", pretrained=False, config=entries, lora=adapters, **options)


def tiny_reward_model(
    architecture: str = "llama",
    lora: bool = False,
    head: HeadConfig | None = None,
    seed: int = 0,
    reference: bool = False,
    packing: Any = "auto",
    **backbone: Any,
) -> RewardModel:
    """A reward model in training mode, without dropout unless `head` says otherwise."""
    head = head or HeadConfig(width=16, dropout=0.0)
    return RewardModel(tiny_backbone(architecture, lora, **backbone), head, seed, reference, packing)
