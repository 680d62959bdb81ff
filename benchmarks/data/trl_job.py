"""TRL's preparation and collation as a job of `benchmarks.data.jobs`: as RewardTrainer has them, in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoTokenizer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from benchmarks.data.jobs import BATCH
from benchmarks.data.material import MOST


def job(pairs: str, tokenizer: str, folder: Path) -> tuple[int, Callable[[], list[list[int]]]]:
    """See `benchmarks.data.jobs.Job`."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    data = prepared(pairs, loaded, folder)
    for _ in loader(data, loaded.pad_token_id):
        pass

    def ids() -> list[list[int]]:
        return [row[side] for row in data for side in ("chosen_ids", "rejected_ids")]  # pyright: ignore

    return len(data), ids


def prepared(pairs: str, tokenizer: Any, folder: Path) -> Dataset:
    """Token ids as RewardTrainer makes them before training."""
    rows = Dataset.from_json(pairs, cache_dir=str(folder / "cache"))
    config = RewardConfig(output_dir=str(folder / "run"), max_length=MOST, report_to="none", use_cpu=True, bf16=False)
    # The method reads nothing of a trainer, which would need a model.
    data = RewardTrainer._prepare_dataset(SimpleNamespace(), rows, tokenizer, config, "train")  # pyright: ignore
    assert isinstance(data, Dataset)
    return data.select_columns(["chosen_ids", "rejected_ids"])


def loader(data: Dataset, pad: int, batch: int = BATCH) -> DataLoader[Any]:
    """Shuffled batches as the trainer makes them, in its own process."""
    generator = torch.Generator().manual_seed(0)
    collate = DataCollatorForPreference(pad_token_id=pad)
    return DataLoader(data, batch, shuffle=True, generator=generator, collate_fn=collate)  # pyright: ignore
