"""Packed attention as a loop over a pack's segments: the CPU's path, and what every GPU kernel is checked against.

Long segments are cut into pieces of queries, since scaled_dot_product_attention computes the scores that a mask hides:
each piece sees only the keys up to its end. Queries align with the end of their keys.

Shape suffixes: B batch (1), A query heads, K key heads, T tokens, Q queries and S keys of a piece, D head size, E head
size of the values.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from grmlight.data.batch import Layout

MAX_QUERIES = 256
"""Of a piece. Smaller ones hide less, and cost more calls."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """What a layer does to its scores.

    Attributes:
        scale: factor on the scores.
        window: keys that a query sees, itself included, or None for all before it.
        softcap: bound of the scores: `softcap * tanh(score / softcap)`, or None.
        dropout: share of the weights that are dropped.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A run of queries: tokens `start:stop` of a segment, the prompt that they also see, and what hides keys."""

    segment: int
    prefix: int
    start: int
    stop: int
    bias_QS: Tensor | None


def attend_segments(
    query_BATD: Float[Tensor, "B A T D"],
    key_BKTD: Float[Tensor, "B K T D"],
    value_BKTE: Float[Tensor, "B K T E"],
    layout: Layout,
    terms: Terms,
    sinks_A: Float[Tensor, " A"] | None = None,
) -> Float[Tensor, "B T A E"]:
    """Attention over the segments of a pack, one piece of queries at a time.

    Args:
        query_BATD: the pack's queries.
        key_BKTD: its keys.
        value_BKTE: its values.
        layout: the segments.
        terms: what is done to the scores.
        sinks_A: a score for each head that takes part in the softmax and has no value (gpt-oss).
    """
    lengths = [end - start for start, end in zip(layout.bounds, layout.bounds[1:], strict=False)]
    queries, keys, values = (states.split(lengths, dim=2) for states in (query_BATD, key_BKTD, value_BKTE))
    explicit = terms.softcap is not None or sinks_A is not None
    outputs = []
    for piece in _pieces(layout, terms.window, explicit, query_BATD.dtype, query_BATD.device):
        query = queries[piece.segment][:, :, piece.start : piece.stop]
        key, value = keys[piece.segment][:, :, : piece.stop], values[piece.segment][:, :, : piece.stop]
        if piece.prefix >= 0:
            key = torch.cat([keys[piece.prefix], key], dim=2)
            value = torch.cat([values[piece.prefix], value], dim=2)
        if explicit:
            outputs.append(_attend_explicitly(query, key, value, piece.bias_QS, terms, sinks_A))
        else:
            outputs.append(_attend(query, key, value, piece.bias_QS, terms))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _attend(query_BAQD: Tensor, key_BKSD: Tensor, value_BKSE: Tensor, bias_QS: Tensor | None, terms: Terms) -> Tensor:
    """One piece; without a bias it is plainly causal, with as many keys as queries."""
    return F.scaled_dot_product_attention(
        query_BAQD,
        key_BKSD,
        value_BKSE,
        attn_mask=bias_QS,
        dropout_p=terms.dropout,
        is_causal=bias_QS is None,
        scale=terms.scale,
        enable_gqa=query_BAQD.shape[1] != key_BKSD.shape[1],
    )


def _attend_explicitly(
    query_BAQD: Tensor,
    key_BKSD: Tensor,
    value_BKSE: Tensor,
    bias_QS: Tensor | None,
    terms: Terms,
    sinks_A: Tensor | None,
) -> Tensor:
    """One piece with terms that scaled_dot_product_attention does not know; the softmax is in float32 at least."""
    assert bias_QS is not None
    repeats = query_BAQD.shape[1] // key_BKSD.shape[1]
    scores_BAQS = (query_BAQD @ key_BKSD.repeat_interleave(repeats, dim=1).mT) * terms.scale
    if terms.softcap is not None:
        scores_BAQS = terms.softcap * torch.tanh(scores_BAQS / terms.softcap)
    scores_BAQS = scores_BAQS + bias_QS
    if sinks_A is not None:
        column_BAQ1 = sinks_A.to(scores_BAQS.dtype)[None, :, None, None].expand(*scores_BAQS.shape[:3], 1)
        scores_BAQS = torch.cat([scores_BAQS, column_BAQ1], dim=-1)
    dtype = torch.promote_types(scores_BAQS.dtype, torch.float32)
    weights_BAQS = F.softmax(scores_BAQS, dim=-1, dtype=dtype).to(query_BAQD.dtype)
    if sinks_A is not None:
        weights_BAQS = weights_BAQS[..., :-1]
    weights_BAQS = F.dropout(weights_BAQS, p=terms.dropout, training=terms.dropout > 0)
    return weights_BAQS @ value_BKSE.repeat_interleave(repeats, dim=1)


@functools.lru_cache(maxsize=4)
def _pieces(
    layout: Layout, window: int | None, explicit: bool, dtype: torch.dtype, device: torch.device
) -> tuple[_Piece, ...]:
    """The pieces of a pack in order; a bias only where plain causality does not say it all, unless `explicit`.

    Kept for the layers that follow: they share the biases, and so does what autograd saves of them.
    """
    biases: dict[tuple[int, int], Tensor | None] = {}
    pieces = []
    for segment, prefix in enumerate(layout.prefix):
        length = layout.bounds[segment + 1] - layout.bounds[segment]
        prompt = layout.bounds[prefix + 1] - layout.bounds[prefix] if prefix >= 0 else 0
        count = -(-length // MAX_QUERIES)
        for number in range(count):
            start, stop = number * length // count, (number + 1) * length // count
            shape = queries, keys = stop - start, prompt + stop
            if shape not in biases:
                plain = queries == keys and not explicit and (window is None or window >= keys)
                biases[shape] = None if plain else _bias(queries, keys, window, dtype, device)
            pieces.append(_Piece(segment, prefix, start, stop, biases[shape]))
    return tuple(pieces)


def _bias(queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a query sees a key and -inf elsewhere; the last query stands at the last key."""
    # What inference mode makes cannot be saved for a later backward, and this may outlive the call.
    with torch.inference_mode(False):
        query_Q1 = torch.arange(keys - queries, keys, device=device)[:, None]
        key_S = torch.arange(keys, device=device)
        unseen_QS = key_S > query_Q1
        if window is not None:
            unseen_QS |= key_S <= query_Q1 - window
        return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(unseen_QS, float("-inf"))
