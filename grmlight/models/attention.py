"""Packed attention: each response of a pack sees its prompt and itself, each prompt only itself.

Notable decisions:

- One function, registered with transformers under `PACKED`. No mask function is registered beside it, so transformers
  builds no mask, whatever the layer kind.
- The `Layout` travels to every layer as the forward keyword `layout`. Without it the function refuses: a plain causal
  pass over a pack would be wrong in silence.
- A layer is a loop of scaled_dot_product_attention over the segments. Queries align with the end of their keys.
- Shape suffixes: B batch (1), A query heads, K key heads, T tokens, Q queries and S keys of a segment, D head size.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from grmlight.data.batch import Layout

PACKED = "grmlight_packed"

_UNKNOWN_TERMS = ("s_aux", "position_bias")
"""Keywords that add to the scores and that this function does not know."""


def packed_attention(
    module: nn.Module,
    query_BATD: Float[Tensor, "B A T D"],
    key_BKTD: Float[Tensor, "B K T D"],
    value_BKTD: Float[Tensor, "B K T E"],
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **terms: Any,
) -> tuple[Float[Tensor, "B T A E"], None]:
    """Attention over the segments of a pack, in the form that transformers calls.

    Raises:
        ValueError: the layout did not arrive, or the model adds a term to its scores that is not known here.
    """
    if layout is None or attention_mask is not None:
        raise ValueError(
            f"attention {PACKED!r} needs a pack's layout and takes no mask; to call this model in another way, "
            "select its own attention first: model.set_attn_implementation('eager')"
        )
    for name in _UNKNOWN_TERMS:
        if terms.get(name) is not None:
            raise ValueError(f"{type(module).__name__} adds {name} to its attention, which packing does not know")

    lengths = [end - start for start, end in zip(layout.bounds, layout.bounds[1:], strict=False)]
    queries, keys, values = (states.split(lengths, dim=2) for states in (query_BATD, key_BKTD, value_BKTD))
    biases = _biases(layout, sliding_window, softcap is not None, query_BATD.dtype, query_BATD.device)
    outputs = []
    for segment, prefix in enumerate(layout.prefix):
        if lengths[segment] == 0:
            continue
        key, value = keys[segment], values[segment]
        if prefix >= 0:
            key = torch.cat([keys[prefix], key], dim=2)
            value = torch.cat([values[prefix], value], dim=2)
        outputs.append(_attend(queries[segment], key, value, biases[segment], scaling, dropout, softcap))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_attention)


def _attend(
    query_BAQD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    bias_QS: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """One segment; without a bias it is plainly causal, with as many keys as queries."""
    repeats = query_BAQD.shape[1] // key_BKSD.shape[1]
    if softcap is None:
        return F.scaled_dot_product_attention(
            query_BAQD,
            key_BKSD,
            value_BKSD,
            attn_mask=bias_QS,
            dropout_p=dropout,
            is_causal=bias_QS is None,
            scale=scaling,
            enable_gqa=repeats > 1,
        )
    assert bias_QS is not None
    scale = query_BAQD.shape[-1] ** -0.5 if scaling is None else scaling
    scores_BAQS = (query_BAQD @ key_BKSD.repeat_interleave(repeats, dim=1).mT) * scale
    scores_BAQS = softcap * torch.tanh(scores_BAQS / softcap)
    weights_BAQS = F.softmax(scores_BAQS + bias_QS, dim=-1, dtype=torch.float32).to(query_BAQD.dtype)
    weights_BAQS = F.dropout(weights_BAQS, p=dropout, training=dropout > 0)
    return weights_BAQS @ value_BKSD.repeat_interleave(repeats, dim=1)


@functools.lru_cache(maxsize=4)
def _biases(
    layout: Layout, window: int | None, explicit: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, ...]:
    """For each segment what is added to its scores; None where plain causality says it all, unless `explicit`.

    Kept for the layers that follow: they share it, and so does what autograd saves of it.
    """
    made: dict[tuple[int, int], Tensor | None] = {}
    biases = []
    for segment, prefix in enumerate(layout.prefix):
        queries = layout.bounds[segment + 1] - layout.bounds[segment]
        keys = queries + (layout.bounds[prefix + 1] - layout.bounds[prefix] if prefix >= 0 else 0)
        shape = (queries, keys)
        if shape not in made:
            plain = queries == keys and not explicit and (window is None or window >= keys)
            made[shape] = None if plain else _bias(queries, keys, window, dtype, device)
        biases.append(made[shape])
    return tuple(biases)


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
