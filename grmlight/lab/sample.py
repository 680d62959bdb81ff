"""Sample responses from an LM, many at a time.

Notable decisions:

- Prompts of one length go together, so nothing is padded and nothing is masked.
- Keys and values are cached, and rows that have ended leave the batch.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

import torch
from transformers import DynamicCache

from grmlight.lab.words import BOS, EOS, SEP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sampled response.

    Attributes:
        text: its words, without the end token.
        ended: whether it ended, rather than being cut off at the length limit.
    """

    text: str
    ended: bool


def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    n: int,
    *,
    seed: int,
    max_new_tokens: int = 40,
    batch_size: int = 1024,
) -> list[list[Sample]]:
    """Draw n responses to each prompt at temperature 1, from the model's own distribution.

    Args:
        model: a causal LM in eval mode; samples are drawn on its device.
        tokenizer: the world's.
        prompts: prompts in words, without special tokens.
        n: responses a prompt.
        seed: of the draws alone. The same seed, prompts, model and batch size give the same samples.
        max_new_tokens: length limit, the end token included.
        batch_size: responses drawn at once.
    """
    if not prompts:
        return []
    texts = [f"{BOS} {prompt} {SEP}" for prompt in prompts]
    encoded = cast("list[list[int]]", tokenizer(texts, add_special_tokens=False)["input_ids"])
    end = cast("int", tokenizer.convert_tokens_to_ids(EOS))
    rows = sorted((index for index in range(len(prompts)) for _ in range(n)), key=lambda index: len(encoded[index]))
    generator = torch.Generator(model.device).manual_seed(seed)
    responses: list[list[Sample]] = [[] for _ in prompts]
    while rows:
        length = len(encoded[rows[0]])
        batch = [index for index in rows[:batch_size] if len(encoded[index]) == length]
        rows = rows[len(batch) :]
        input_ids = torch.tensor([encoded[index] for index in batch], device=model.device)
        drawn = _draw(model, input_ids, generator, end, max_new_tokens)
        for index, tokens in zip(batch, drawn, strict=True):
            ended = tokens[-1] == end
            words = cast("list[str]", tokenizer.convert_ids_to_tokens(tokens[: len(tokens) - ended]))
            responses[index].append(Sample(" ".join(words), ended))
    return responses


@torch.inference_mode()
def _draw(
    model: PreTrainedModel, input_ids: Int[Tensor, "rows prompt"], generator: torch.Generator, end: int, limit: int
) -> list[list[int]]:
    """The tokens that follow each row, up to and with the end token."""
    cache = DynamicCache(config=model.config)
    alive = torch.arange(len(input_ids), device=input_ids.device)
    drawn = torch.full((len(input_ids), limit), end, device=input_ids.device)
    lengths = torch.full((len(input_ids),), limit, device=input_ids.device)
    for step in range(limit):
        logits = model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        input_ids = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)
        drawn[alive, step] = input_ids[:, 0]
        going = (input_ids[:, 0] != end).nonzero()[:, 0]
        if len(going) < len(alive):
            lengths[alive[input_ids[:, 0] == end]] = step + 1
            alive, input_ids = alive[going], input_ids[going]
            if len(alive) == 0:
                break
            cache.batch_select_indices(going)
    return [tokens[:length] for tokens, length in zip(drawn.tolist(), lengths.tolist(), strict=True)]
