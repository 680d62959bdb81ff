"""The same steps on a GPU: a model of 1B parameters in full and one of 8B with LoRA, random weights, in bf16."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.train.material import make_material
from benchmarks.train.ours import ours
from benchmarks.train.peers import Variant, trl
from benchmarks.train.report import Row
from benchmarks.train.shapes import SHAPES, population, typical_batch
from benchmarks.train.steps import median_ratio
from grmlight.models import LoraOptions

_LLAMA: dict[str, Any] = {"vocab_size": 128_256, "max_position_embeddings": 4096, "num_attention_heads": 32}
MODELS: dict[str, dict[str, Any]] = {
    "1B full": _LLAMA
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_key_value_heads": 8},
    "8B LoRA": _LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_key_value_heads": 8},
}
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def gpu_rows(folder: Path, repetitions: int = 3, steps: int = 5) -> list[Row]:
    """Ratios of step times on one GPU; without one a line that says so, and no figure."""
    if not torch.cuda.is_available():
        print("  no GPU here: not measured", flush=True)
        return []
    rows = []
    for name, entries in MODELS.items():
        rows += _model_rows(name, entries, folder / name.replace(" ", "_"), repetitions, steps)
    return rows


def _model_rows(name: str, entries: dict[str, Any], folder: Path, repetitions: int, steps: int) -> list[Row]:
    dtype = torch.bfloat16 if "LoRA" in name else torch.float32
    material = make_material(folder, typical_batch(population(SHAPES["reference"]), 8), entries, dtype)
    variants = _variants("LoRA" in name)
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    figures: dict[str, dict[str, float]] = {}
    for _ in range(repetitions):
        for variant, run in variants.items():
            found = run(material, steps + 1)
            seconds[variant].append(statistics.median(found.seconds))
            figures[variant] = found.figures
            torch.cuda.empty_cache()
            print(f"  {name}, {variant}: {seconds[variant][-1]:.3f} s", flush=True)
    ratios = [
        ("reward model against TRL without checkpointing", "trl without checkpointing", "ours"),
        ("reward model against TRL's defaults", "trl", "ours"),
        ("GRM-SFT against TRL's plain reward model", "trl", "ours sft"),
    ]
    rows = [Row(f"GPU, {name}: {what}", median_ratio(seconds[slow], seconds[fast]), "x") for what, slow, fast in ratios]
    rows += [
        Row(f"GPU, {name}: MFU, {variant}", 100 * logged["speed/mfu"], "%")
        for variant, logged in figures.items()
        if "speed/mfu" in logged
    ]
    return rows + [
        Row(f"GPU, {name}: pairs a second, {variant}", len(material.ids) / statistics.median(took), "pairs/s")
        for variant, took in seconds.items()
    ]


def _variants(lora: bool) -> dict[str, Variant]:
    adapters = {"r": 32, "lora_alpha": 64, "target_modules": list(_TARGETS)} if lora else None
    mine: dict[str, Any] = {"precision": "bf16-mixed"}
    if lora:
        mine |= {"lora": LoraOptions(r=32, alpha=64, dropout=0.0, targets=_TARGETS), "dtype": "bfloat16"}
    return {
        "trl": trl(bf16=True, lora=adapters),
        "trl without checkpointing": trl(gradient_checkpointing=False, bf16=True, lora=adapters),
        "ours": ours(**mine),
        "ours sft": ours("sft", **mine),
    }
