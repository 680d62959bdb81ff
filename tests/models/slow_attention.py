"""Packed attention as its definition says it, one token at a time; and what variable-length kernels promise."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from grmlight.data.batch import Layout
from grmlight.models.segments import Terms


def layout_of(*groups: tuple[int, list[int]]) -> Layout:
    """The layout of groups, each a prompt's length and its responses' lengths."""
    bounds, prefix = [0], []
    for prompt, responses in groups:
        owner = len(prefix)
        for length, seen in [(prompt, -1), *((length, owner) for length in responses)]:
            bounds.append(bounds[-1] + length)
            prefix.append(seen)
    return Layout(tuple(bounds), tuple(prefix), tuple(s for s, seen in enumerate(prefix) if seen >= 0))


def random_layouts(count: int, seed: int = 0) -> list[Layout]:
    """Layouts of a few groups; some without a prompt."""
    rng = random.Random(seed)
    return [
        layout_of(
            *(
                (rng.choice([0, rng.randrange(1, 40)]), [rng.randrange(1, 30) for _ in range(rng.randrange(1, 5))])
                for _ in range(rng.randrange(1, 5))
            )
        )
        for _ in range(count)
    ]


def visible(layout: Layout) -> list[list[int]]:
    """For each token the pack indices that it sees, in the order of its sequence, itself last."""
    seen = []
    for segment, prefix in enumerate(layout.prefix):
        prompt = list(range(layout.bounds[prefix], layout.bounds[prefix + 1])) if prefix >= 0 else []
        start = layout.bounds[segment]
        seen += [prompt + list(range(start, token + 1)) for token in range(start, layout.bounds[segment + 1])]
    return seen


def attend_token_by_token(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, terms: Terms, sinks: Tensor | None = None
) -> Tensor:
    """[1, T, A, E]; every head's keys are repeated as grouped heads ask."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    outputs = []
    for token, seen in enumerate(visible(layout)):
        keys = seen if terms.window is None else seen[-terms.window :]
        outputs.append(_one_query(query[0, :, token], key[0][:, keys], value[0][:, keys], terms, sinks))
    return torch.stack(outputs)[None]


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    max_q: int,
    max_k: int,
    terms: Terms,
    window: tuple[int, int],
) -> Tensor:
    """A variable-length kernel's promise: in a run, query i stands at key i + keys - queries; it sees the keys up to
    `window[0]` before that place and `window[1]` after it, -1 being without a bound. Nothing here is [1, ...]."""
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert starts_q[-1] == len(query)
    assert starts_k[-1] == len(key) == len(value)
    assert max_q == starts_q.diff().max()
    assert max_k == starts_k.diff().max()
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    outputs = []
    for run in range(len(starts_q) - 1):
        queries = range(int(starts_q[run]), int(starts_q[run + 1]))
        first, keys = int(starts_k[run]), int(starts_k[run + 1] - starts_k[run])
        for number, token in enumerate(queries):
            place = number + keys - len(queries)
            low = 0 if window[0] < 0 else max(place - window[0], 0)
            high = keys if window[1] < 0 else min(place + window[1] + 1, keys)
            seen = slice(first + low, first + high)
            outputs.append(_one_query(query[token], key[seen].transpose(0, 1), value[seen].transpose(0, 1), terms))
    return torch.stack(outputs)


def _one_query(query_AD: Tensor, key_ASD: Tensor, value_ASE: Tensor, terms: Terms, sinks_A: Tensor | None = None):
    scores_AS = (key_ASD @ query_AD[:, :, None]).squeeze(-1) * terms.scale
    if terms.softcap is not None:
        scores_AS = terms.softcap * torch.tanh(scores_AS / terms.softcap)
    if sinks_A is not None:
        scores_AS = torch.cat([scores_AS, sinks_A[:, None]], dim=1)
    weights_AS = torch.softmax(scores_AS.float() if scores_AS.dtype == torch.bfloat16 else scores_AS, dim=1)
    return (weights_AS[:, None, : value_ASE.shape[1]].to(value_ASE.dtype) @ value_ASE).squeeze(1)


def random_states(
    layout: Layout, heads: tuple[int, int] = (4, 2), sizes: tuple[int, int] = (8, 8), dtype=torch.float64, seed: int = 0
) -> list[Tensor]:
    """Queries, keys and values of a pack, in the strides that models use."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads[0], sizes[0]), (heads[1], sizes[0]), (heads[1], sizes[1])]
    made = (torch.randn(1, layout.bounds[-1], *shape, dtype=dtype, generator=generator) for shape in shapes)
    return [states.transpose(1, 2).requires_grad_() for states in made]


def values_and_gradients(attend, states: list[Tensor], seed: int = 1) -> list[Tensor]:
    """The output of `attend(*states)` and the gradients of a random sum of it."""
    output = attend(*states)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [output, *torch.autograd.grad((output * weights.to(output)).sum(), states)]
