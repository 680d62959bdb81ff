"""What the reference answers to the training prompts: the base distribution that RPO may anchor a policy to."""

from __future__ import annotations

import tempfile
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_info

from grmlight._data_rs import read_pairs
from grmlight.data.datamodule import PairDataModule
from grmlight.data.encode import TokenGroup
from grmlight.data.source import as_json_lines
from grmlight.data.tokenizer import load_tokenizer
from grmlight.models import PolicyModel
from grmlight.policy.objectives import Anchor
from grmlight.policy.rollouts import PromptText
from grmlight.policy.sampler import SamplingOptions


def base_samples(
    trainer: L.Trainer, model: PolicyModel, datamodule: PairDataModule, anchor: Anchor, seed: int
) -> list[TokenGroup]:
    """Samples of the start model for each group of the training store, in its order. Call it on every rank.

    Every rank draws all of them, so ranks have the same and none waits for another.
    """
    from grmlight.policy.huggingface import HuggingFaceSampler

    prompts = training_prompts(datamodule)
    model.to(trainer.strategy.root_device)
    sampler = HuggingFaceSampler(
        model, load_tokenizer(datamodule.tokenizer, datamodule.options.chat_template), datamodule.options
    )
    options = SamplingOptions(samples=anchor.samples, max_new_tokens=anchor.max_new_tokens)
    rollouts = sampler.generate(prompts, options, seed)
    rank_zero_info(
        f"anchor: {anchor.samples} samples of the reference for each of {len(prompts)} prompts, {rollouts.seconds:.0f} s"
    )
    return [group.token_group() for group in rollouts.groups]


def training_prompts(datamodule: PairDataModule) -> list[PromptText]:
    """The prompt of each group of the training store, in its order."""
    prepared = datamodule.prepared["train"]
    with tempfile.TemporaryDirectory() as folder, as_json_lines(prepared.source, Path(folder)) as path:
        found = read_pairs(path, {"name": prepared.source})
        prompts = {found.row(index): found.group(index)[0] for index in range(len(found))}
    texts = [prompts[entry["row"]] for entry in prepared.store.rows()]
    return [text if isinstance(text, str) else tuple(text) for text in texts]
