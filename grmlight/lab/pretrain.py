"""Pretrain a world's LM from nothing: `python -m grmlight.lab.pretrain --seed 0 --out DIR`.

Notable decisions:

- A Llama of 0.36 M parameters, one pass over 64,000 documents: about 75 seconds of one CPU core.
- Batches are of similar length; right padding needs no mask, since causal attention never looks at it.
- The same seed, number of threads and PyTorch build give the same weights; the caller's random state is not touched.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from grmlight.lab.corpus import corpus
from grmlight.lab.gold import Gold, parts
from grmlight.lab.sample import sample_responses
from grmlight.lab.tokenizer import MAX_LENGTH, build_tokenizer, save_tokenizer
from grmlight.lab.words import BOS, EOS, PAD, VOCABULARY, stream
from grmlight.lab.world import Split, World, draw_prompt

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    from jaxtyping import Int
    from torch import Tensor

MAX_NEW_TOKENS = 40
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the LM is pretrained.

    Attributes:
        documents: size of the corpus, read once.
        batch: documents a step.
        learning_rate: its peak, after a linear warm-up and before a cosine to 0.
        warmup: steps.
        weight_decay: AdamW's.
    """

    documents: int = 64_000
    batch: int = 32
    learning_rate: float = 4e-3
    warmup: int = 100
    weight_decay: float = 0.05

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return math.ceil(self.documents / self.batch)

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0, as a multiple of the peak."""
        return min((step + 1) / self.warmup, 0.5 * (1 + math.cos(math.pi * step / self.steps)))


def lm_config() -> LlamaConfig:
    """The architecture."""
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=96,
        intermediate_size=264,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=VOCABULARY.index(EOS),
        pad_token_id=VOCABULARY.index(PAD),
    )


def encode_corpus(world: World, documents: int) -> list[Int[Tensor, " tokens"]]:
    """Token ids of the documents of the world's corpus."""
    texts = [document.text for document in tqdm(corpus(world, documents), "writing the corpus", documents)]
    return [torch.tensor(ids) for ids in build_tokenizer()(texts, add_special_tokens=False)["input_ids"]]


def batches(
    documents: list[Int[Tensor, " tokens"]], size: int, rng: random.Random
) -> Iterator[Int[Tensor, "batch tokens"]]:
    """All documents once, in batches of similar length and random order, padded with `IGNORED`."""
    order = sorted(range(len(documents)), key=lambda index: (len(documents[index]), rng.random()))
    starts = range(0, len(order), size)
    for start in rng.sample(starts, len(starts)):
        rows = [documents[index] for index in order[start : start + size]]
        yield pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def pretrain(world: World, recipe: Recipe | None = None) -> tuple[LlamaForCausalLM, list[float]]:
    """Train the world's LM.

    Returns the model in eval mode, and the loss of each step in nats a token.
    """
    recipe = recipe or Recipe()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(world.seed, "lm").getrandbits(63))
        model = LlamaForCausalLM(lm_config())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.rate)
    documents = encode_corpus(world, recipe.documents)
    losses = []
    dealt = batches(documents, recipe.batch, stream(world.seed, "batches"))
    bar = tqdm(dealt, "pretraining", recipe.steps, unit="step")
    model.train()
    for labels in bar:
        loss = model(input_ids=labels.clamp(min=0), labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % 50 == 0:
            bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
    return model.eval(), losses


def save_lm(model: LlamaForCausalLM, directory: Path) -> None:
    """Write a Hugging Face folder: weights, configs and tokenizer."""
    config = model.config
    model.generation_config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=MAX_NEW_TOKENS,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(directory)
    save_tokenizer(directory)
    for file in directory.iterdir():
        file.chmod(0o644)


def measure_gold(model: LlamaForCausalLM, world: World, responses: int = 600) -> Gold:
    """The world's gold, standardized on the LM's responses to ID prompts."""
    rng = stream(world.seed, "gold")
    prompts = [draw_prompt(rng, Split.ID) for _ in range(responses)]
    samples = sample_responses(model, build_tokenizer(), [prompt.text for prompt in prompts], 1, seed=0)
    raw = Gold(world).scores(prompts, [row[0].text for row in samples], [row[0].ended for row in samples])
    return Gold(world, float(raw.mean()), float(raw.std()))


def corpus_gold(world: World, documents: int = 20_000) -> tuple[float, float]:
    """Mean and deviation of the unstandardized gold of the corpus' answers to ID prompts."""
    read = (document for document in corpus(world, documents, "fresh") if Split.ID.holds(document.prompt))
    totals = [parts(world, document.prompt, document.answer).total for document in read]
    return float(np.mean(totals)), float(np.std(totals))


def summary(gold: Gold, losses: Sequence[float] = ()) -> str:
    """The final loss, and the LM's gold on ID prompts beside that of the corpus it has read."""
    mean, deviation = corpus_gold(gold.world)
    loss = f"loss {np.mean(losses[-100:]):.3f} nats a token (mean of the last 100 steps)\n" if losses else ""
    return (
        f"{loss}gold of answers to ID prompts, unstandardized: "
        f"LM {gold.mean:.2f} (sd {gold.deviation:.2f}), corpus {mean:.2f} (sd {deviation:.2f})"
    )


def main(arguments: list[str] | None = None) -> None:
    """Pretrain and save."""
    parser = argparse.ArgumentParser(prog="python -m grmlight.lab.pretrain", description="Pretrain a world's LM.")
    parser.add_argument("--seed", type=int, default=0, help="the world (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="where the Hugging Face folder goes")
    options = parser.parse_args(arguments)
    world = World(options.seed)
    model, losses = pretrain(world)
    save_lm(model, options.out)
    print(summary(measure_gold(model, world), losses))


if __name__ == "__main__":
    main()
