"""What the reference answers to the training prompts: the base distribution that RPO may anchor a policy to."""

from __future__ import annotations

import time

import lightning.pytorch as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from grmlight.data.datamodule import PairDataModule
from grmlight.data.encode import TokenGroup
from grmlight.data.set_prompts import set_prompts
from grmlight.data.tokenizer import load_tokenizer
from grmlight.models import PolicyModel
from grmlight.policy.huggingface import HuggingFaceSampler
from grmlight.policy.objectives import Anchor
from grmlight.policy.ranks import AllRanks
from grmlight.policy.sampler import SamplingOptions

_NOTHING = TokenGroup((np.zeros(1, np.int64),), (1,))
"""A sequence of which no token is scored."""


def base_samples(
    trainer: L.Trainer, model: PolicyModel, datamodule: PairDataModule, anchor: Anchor, seed: int
) -> list[TokenGroup]:
    """Samples of the start model for each group of the training store, in its order. Call it on every rank.

    Each rank draws its share, the same whatever their count, and all get all of them. A prompt that leaves the model no
    room for an answer is named, and has one without a token, of which no loss is taken.
    """
    prompts = set_prompts(datamodule.prepared["train"])
    model.to(trainer.strategy.root_device)
    sampler = HuggingFaceSampler(
        model, load_tokenizer(datamodule.tokenizer, datamodule.options.chat_template), datamodule.options
    )
    options = SamplingOptions(samples=anchor.samples, max_new_tokens=anchor.max_new_tokens)
    ranks = AllRanks(trainer)
    refused = sampler.refused(prompts, options)
    numbers = [place for place in range(len(prompts)) if place not in refused]
    mine = numbers[ranks.rank :: ranks.count]
    began = time.perf_counter()
    drawn = ranks.together(lambda: sampler.generate([prompts[place] for place in mine], options, seed, mine))
    parts = ranks.gather([group.token_group() for group in drawn.groups])
    rank_zero_info(
        f"anchor: {anchor.samples} samples of the reference to each of {len(numbers)} prompts, "
        f"{time.perf_counter() - began:.0f} s"
    )
    if refused:
        place, reason = next(iter(refused.items()))
        rank_zero_warn(
            f"anchor: {len(refused)} prompts have no samples of the reference and no anchor, the first is that of row "
            f"{datamodule.prepared['train'].store.rows()[place]['row']} ({reason}); lower anchor.max_new_tokens or "
            "data.max_length"
        )
    found = dict(zip(numbers, _in_order(parts, len(numbers)), strict=True))
    return [found.get(place, _NOTHING) for place in range(len(prompts))]


def _in_order(parts: list[list[TokenGroup]], count: int) -> list[TokenGroup]:
    """What was dealt to the ranks in turn, put together again."""
    return [parts[place % len(parts)][place // len(parts)] for place in range(count)]
