"""Packed attention as one call of a variable-length flash kernel: torch's own, or the flash-attn package's.

Queries go in as they are packed. Keys and values are gathered into (prompt | prompt, response | ...), one run for each
segment, so a run has more keys than queries; these kernels align causality at the end of both, which is what is meant.

Shape suffixes: B batch (1), A query heads, K key heads, T tokens, S gathered keys, R runs, D head size, E head size of
the values.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from grmlight.data.batch import Layout, send
from grmlight.models.segments import Terms

MAX_HEAD_SIZE = 256
"""What the kernels take."""

_HEAD_SIZE_STEP = 8


@dataclasses.dataclass(frozen=True)
class Runs:
    """The calls of a pack, one run for each segment that has tokens.

    Attributes:
        key_S: the pack index of each gathered key.
        query_starts_R: where each run's queries begin, and the end.
        key_starts_R: where each run's keys begin among the gathered ones, and the end.
        max_queries, max_keys: of the longest run.
    """

    key_S: Int[Tensor, " S"]
    query_starts_R: Int[Tensor, " R+1"]
    key_starts_R: Int[Tensor, " R+1"]
    max_queries: int
    max_keys: int


class Kernel(Protocol):
    """A variable-length kernel over [tokens, heads, size], causal and aligned at the end of queries and keys."""

    def __call__(
        self,
        query_TAD: Float[Tensor, "T A D"],
        key_SKD: Float[Tensor, "S K D"],
        value_SKD: Float[Tensor, "S K D"],
        runs: Runs,
        terms: Terms,
    ) -> Float[Tensor, "T A D"]:
        """Attention of each run's queries over its keys."""
        ...


def attend_runs(
    query_BATD: Float[Tensor, "B A T D"],
    key_BKTD: Float[Tensor, "B K T D"],
    value_BKTE: Float[Tensor, "B K T E"],
    layout: Layout,
    terms: Terms,
    kernel: Kernel,
) -> Float[Tensor, "B T A E"]:
    """Attention over the segments of a pack, in one call of the kernel."""
    runs = runs_of(layout, query_BATD.device)
    size, values = padded_head_size(query_BATD.shape[-1], value_BKTE.shape[-1]), value_BKTE.shape[-1]
    query, key, value = (
        _widen(states.squeeze(0).transpose(0, 1), size) for states in (query_BATD, key_BKTD, value_BKTE)
    )
    output_TAD = kernel(query, key.index_select(0, runs.key_S), value.index_select(0, runs.key_S), runs, terms)
    return output_TAD[None, :, :, :values]


def padded_head_size(keys: int, values: int) -> int:
    """The one head size, a multiple of 8, that queries, keys and values are widened to with zeros."""
    return -(-max(keys, values) // _HEAD_SIZE_STEP) * _HEAD_SIZE_STEP


@functools.lru_cache(maxsize=4)
def runs_of(layout: Layout, device: torch.device) -> Runs:
    """The runs of a pack. Kept for the layers that follow."""
    keys, queries, seen = [], [], []
    for segment, prefix in enumerate(layout.prefix):
        start, end = layout.bounds[segment], layout.bounds[segment + 1]
        if start == end:
            continue
        own = torch.arange(start, end)
        if prefix >= 0:
            own = torch.cat([torch.arange(layout.bounds[prefix], layout.bounds[prefix + 1]), own])
        keys.append(own)
        queries.append(end - start)
        seen.append(len(own))
    # What inference mode makes cannot be saved for a later backward, and this may outlive the call.
    with torch.inference_mode(False):
        return Runs(
            key_S=send(torch.cat(keys), device),
            query_starts_R=send(_starts(queries), device),
            key_starts_R=send(_starts(seen), device),
            max_queries=max(queries),
            max_keys=max(seen),
        )


def window_size(window: int | None) -> tuple[int, int]:
    """A window in the kernels' words: keys before the query's own, and after it; -1 is without a bound."""
    return (-1 if window is None else window - 1, 0)


def torch_kernel(query_TAD: Tensor, key_SKD: Tensor, value_SKD: Tensor, runs: Runs, terms: Terms) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn: bfloat16 or float16, no softcap, no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    assert terms.softcap is None
    assert not terms.dropout
    output = varlen_attn(
        query_TAD,
        key_SKD,
        value_SKD,
        runs.query_starts_R,
        runs.key_starts_R,
        runs.max_queries,
        runs.max_keys,
        scale=terms.scale,
        window_size=window_size(terms.window),
        enable_gqa=query_TAD.shape[1] != key_SKD.shape[1],
    )
    assert isinstance(output, Tensor)
    return output


def flash_attn_kernel(query_TAD: Tensor, key_SKD: Tensor, value_SKD: Tensor, runs: Runs, terms: Terms) -> Tensor:
    """The flash-attn package's flash_attn_varlen_func: bfloat16 or float16."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    return flash_attn_varlen_func(
        query_TAD,
        key_SKD,
        value_SKD,
        runs.query_starts_R,
        runs.key_starts_R,
        runs.max_queries,
        runs.max_keys,
        dropout_p=terms.dropout,
        softmax_scale=terms.scale,
        causal=True,
        window_size=window_size(terms.window),
        softcap=terms.softcap or 0.0,
    )


def _widen(states_TKD: Tensor, size: int) -> Tensor:
    missing = size - states_TKD.shape[-1]
    return F.pad(states_TKD, (0, missing)) if missing else states_TKD


def _starts(lengths: list[int]) -> Tensor:
    ends_R = torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return F.pad(ends_R, (1, 0))
