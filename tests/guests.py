"""Tiny base models on disk, and reward models that are adapters of them, as `grmlight export` writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from grmlight import PrepareOptions
from grmlight.convert import write_for_others
from grmlight.export import Opened
from grmlight.models import BackboneConfig, HeadConfig, LoraOptions, RewardModel
from tests.models.plain import wake_adapters
from tests.tiny_models import LORA_TARGETS, tiny_config


def base(folder: Path, tokenizer: Path, architecture: str = "llama", seed: int = 0) -> Path:
    """A folder with a causal LM and its tokenizer."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**tiny_config(architecture, vocab_size=320))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def lora(architecture: str = "llama", rank: int = 4) -> LoraOptions:
    targets = LORA_TARGETS.get(architecture, ("q_proj", "v_proj"))
    return LoraOptions(r=rank, alpha=3 * rank, dropout=0.1, targets=targets)


def guest(
    folder: Path, on: Path, head: str = "mlp", options: LoraOptions | None = None, read: PrepareOptions | None = None
) -> Path:
    """A folder with a reward model's adapter on a base's folder."""
    backbone = BackboneConfig(name=str(on), lora=options or lora())
    model = RewardModel(backbone, HeadConfig(kind=head, width=16), seed=5)  # pyright: ignore[reportArgumentType]
    wake_adapters(model)
    opened = Opened(model, AutoTokenizer.from_pretrained(on), read or PrepareOptions())
    write_for_others(opened, folder, "adapter", {})
    return folder
