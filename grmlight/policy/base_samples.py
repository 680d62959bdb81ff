"""What the reference answers to the training prompts: the base distribution that RPO may anchor a policy to."""

from __future__ import annotations

import lightning.pytorch as L
from lightning.pytorch.utilities import rank_zero_info

from grmlight.data.datamodule import PairDataModule
from grmlight.data.encode import TokenGroup
from grmlight.data.set_prompts import set_prompts
from grmlight.data.tokenizer import load_tokenizer
from grmlight.models import PolicyModel
from grmlight.policy.huggingface import HuggingFaceSampler
from grmlight.policy.objectives import Anchor
from grmlight.policy.sampler import SamplingOptions


def base_samples(
    trainer: L.Trainer, model: PolicyModel, datamodule: PairDataModule, anchor: Anchor, seed: int
) -> list[TokenGroup]:
    """Samples of the start model for each group of the training store, in its order. Call it on every rank.

    Every rank draws all of them, so ranks have the same and none waits for another.
    """
    prompts = set_prompts(datamodule.prepared["train"])
    model.to(trainer.strategy.root_device)
    sampler = HuggingFaceSampler(
        model, load_tokenizer(datamodule.tokenizer, datamodule.options.chat_template), datamodule.options
    )
    options = SamplingOptions(samples=anchor.samples, max_new_tokens=anchor.max_new_tokens)
    rollouts = sampler.generate(prompts, options, seed)
    rank_zero_info(
        f"anchor: {anchor.samples} samples of the reference to each of {len(prompts)} prompts, {rollouts.seconds:.0f} s"
    )
    return [group.token_group() for group in rollouts.groups]
