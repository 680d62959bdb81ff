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
    "bloom": {"num_key_value_heads": None, "intermediate_size": None, "max_position_embeddings": None},
}

PACKABLE = ("llama", "gemma2", "mistral", "qwen3", "gpt_neox")
UNPACKABLE = ("bloom",)

LORA_TARGETS = {
    "gpt_neox": ("query_key_value", "dense"),
    "bloom": ("query_key_value", "dense"),
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
