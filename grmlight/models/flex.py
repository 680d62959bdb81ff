"""Packed attention as one flex attention: what softcaps, attention sinks and float32 need on a GPU.

The pack goes in as it is. Which keys a query sees is told twice, and never as a dense mask: for every pair by a
predicate on segments and positions, and by a table of the blocks in which some pair is seen.

Shape suffixes: B batch (1), A query heads, K key heads, T tokens, N blocks, D head size, E head size of the values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from grmlight.data.batch import Layout, send
from grmlight.models.segments import Terms

BLOCK = 128
"""Tokens of a block, flex attention's own choice."""


@functools.cache
def compiled() -> Callable[..., Any]:
    """Flex attention as a fused kernel. Uncompiled it would build all scores."""
    return torch.compile(flex_attention, fullgraph=True)


def attend_blocks(
    query_BATD: Float[Tensor, "B A T D"],
    key_BKTD: Float[Tensor, "B K T D"],
    value_BKTE: Float[Tensor, "B K T E"],
    layout: Layout,
    terms: Terms,
    sinks_A: Float[Tensor, " A"] | None = None,
    kernel: Callable[..., Any] | None = None,
) -> Float[Tensor, "B T A E"]:
    """Attention over the segments of a pack, in one call. `kernel`: `compiled()`, or plain flex_attention in tests."""
    assert not terms.dropout
    output_BATE, aux = (kernel or compiled())(
        query_BATD,
        key_BKTD,
        value_BKTE,
        score_mod=None if terms.softcap is None else _softcap(terms.softcap),
        block_mask=block_mask(layout, terms.window, query_BATD.device),
        scale=terms.scale,
        enable_gqa=query_BATD.shape[1] != key_BKTD.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if sinks_A is not None:
        # One more score in the softmax's sum, without a value.
        share_BAT = torch.sigmoid(aux.lse - sinks_A.float()[None, :, None])
        output_BATE = (output_BATE * share_BAT[..., None]).to(query_BATD.dtype)
    return output_BATE.transpose(1, 2).contiguous()


@functools.lru_cache(maxsize=8)
def block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """Which blocks and pairs are seen. Kept for the layers that follow."""
    tokens = layout.bounds[-1]
    # What inference mode makes cannot be saved for a later backward, and this may outlive the call.
    with torch.inference_mode(False):
        seen_NN = seen_blocks(layout)
        order_NN = torch.argsort(seen_NN.int(), dim=1, descending=True, stable=True)
        return BlockMask.from_kv_blocks(
            send(seen_NN.sum(dim=1, dtype=torch.int32)[None, None], device),
            send(order_NN.int()[None, None], device),
            BLOCK_SIZE=BLOCK,
            mask_mod=predicate(layout, window, device),
            seq_lengths=(tokens, tokens),
        )


def predicate(layout: Layout, window: int | None, device: torch.device) -> Callable[..., Tensor]:
    """Whether a query sees a key, by their places in the pack."""
    lengths_S = torch.tensor(layout.bounds).diff()
    segment_T = torch.repeat_interleave(torch.arange(len(lengths_S)), lengths_S)
    prefix_S = torch.tensor(layout.prefix)
    prompts_S = torch.where(prefix_S >= 0, lengths_S[prefix_S.clamp(min=0)], 0)
    position_T = torch.arange(len(segment_T)) - (torch.tensor(layout.bounds[:-1]) - prompts_S)[segment_T]
    prefix_T = send(prefix_S[segment_T], device)
    segment_T, position_T = send(segment_T, device), send(position_T, device)
    # A tensor, so that layers with a window and layers without share one compiled kernel.
    window_ = torch.full((), layout.bounds[-1] if window is None else window, device=device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        mine = (segment_T[key] == segment_T[query]) | (segment_T[key] == prefix_T[query])
        distance = position_T[query] - position_T[key]
        return mine & (distance >= 0) & (distance < window_)

    return sees


def seen_blocks(layout: Layout) -> Tensor:
    """Bool [N, N]: blocks of queries and keys in which some pair may be seen. It may name more, never fewer."""
    blocks = -(-layout.bounds[-1] // BLOCK)
    seen_NN = torch.zeros(blocks, blocks, dtype=torch.bool)
    for segment, prefix in enumerate(layout.prefix):
        start, end = layout.bounds[segment], layout.bounds[segment + 1]
        for first, last in [
            (start, end),
            *([(layout.bounds[prefix], layout.bounds[prefix + 1])] if prefix >= 0 else []),
        ]:
            if start < end and first < last:
                seen_NN[start // BLOCK : -(-end // BLOCK), first // BLOCK : -(-last // BLOCK)] = True
    # A key never lies behind its query.
    return seen_NN.tril_()


def _softcap(softcap: float) -> Callable[..., Tensor]:
    def cap(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        return softcap * torch.tanh(score / softcap)

    return cap
