"""The path for models that cannot be packed: whole sequences in right-padded rows, bucketed by length.

The mask comes from the segment bounds, so the id of the padding does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from grmlight.data.batch import GroupBatch, Layout, send
from grmlight.models.hidden import HiddenStates

MAX_PADDED = 1.25
"""A bucket holds at most this many times its real tokens."""


def padded_states(
    decoder: nn.Module, batch: GroupBatch, bucketed: bool = True, place: Callable[[Tensor], None] | None = None
) -> HiddenStates:
    """Run each response behind a copy of its prompt, with the model's own attention.

    Args:
        decoder: the causal LM without its LM head.
        batch: the groups.
        bucketed: in one forward a length bucket; otherwise in a single one.
        place: told before each forward which token of the pack lies where, [B, W].
    """
    spans = _spans(batch.layout)
    lengths = [sum(end - start for start, end in span) for span in spans]
    first_row = [0] * len(spans)
    states, rows = [], 0
    for bucket in length_buckets(lengths, MAX_PADDED if bucketed else math.inf):
        width = lengths[bucket[0]]
        token_BW, mask_BW = _rows([spans[response] for response in bucket], width, batch.input_ids_T.device)
        if place is not None:
            place(token_BW)
        output = decoder(input_ids=batch.input_ids_T[token_BW], attention_mask=mask_BW, use_cache=False)
        states.append(output.last_hidden_state.flatten(0, 1))
        for response in bucket:
            first_row[response] = rows
            rows += width
    first_N = send(torch.tensor(first_row), batch.last_N.device)
    return HiddenStates(
        states_RH=torch.cat(states),
        last_N=first_N + batch.positions_T[batch.last_N],
        source_L=first_N[batch.response_L] + batch.positions_T[batch.source_L],
    )


def length_buckets(lengths: list[int], max_padded: float = MAX_PADDED) -> list[list[int]]:
    """Indices of `lengths` in buckets, longest first, each as large as `max_padded` allows."""
    buckets: list[list[int]] = []
    width = real = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if buckets and width * (len(buckets[-1]) + 1) <= max_padded * (real + lengths[index]):
            buckets[-1].append(index)
            real += lengths[index]
        else:
            buckets.append([index])
            width = real = lengths[index]
    return buckets


def _spans(layout: Layout) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """For each response where its prompt and it itself lie in the pack."""
    segments = list(zip(layout.bounds, layout.bounds[1:], strict=False))
    return [(segments[layout.prefix[response]], segments[response]) for response in layout.responses]


def _rows(
    spans: list[tuple[tuple[int, int], tuple[int, int]]], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pack indices and mask, [B, W]; padding repeats the pack's first token under a mask of 0."""
    token_BW = torch.zeros(len(spans), width, dtype=torch.int64)
    mask_BW = torch.zeros(len(spans), width, dtype=torch.int64)
    for row, span in enumerate(spans):
        tokens = torch.cat([torch.arange(start, end) for start, end in span])
        token_BW[row, : len(tokens)] = tokens
        mask_BW[row, : len(tokens)] = 1
    return send(token_BW, device), send(mask_BW, device)
