"""Packed attention: each response of a pack sees its prompt and itself, each prompt only itself.

Notable decisions:

- One function, registered with transformers under `PACKED`. No mask function is registered beside it, so transformers
  builds no mask, whatever the layer kind.
- The layout's table travels to every layer as the attention mask: a mask of four axes is handed down as it is, by
  every model, through gradient checkpointing too. Without it the function refuses: a plain causal pass over a pack
  would be wrong in silence.
- To torch.compile a layer's attention is one opaque operator. The table is a tensor to it, so packs of other layouts
  do not recompile. Its backward runs the forward again.
- Shape suffixes: B batch (1), A query heads, K key heads, T tokens, S segments, D head size, E head size of the values.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from grmlight.data.batch import Layout
from grmlight.models.kernels import attend
from grmlight.models.segments import Terms

PACKED = "grmlight_packed"

_UNKNOWN_TERMS = ("position_bias",)
"""Keywords that add to the scores and that this function does not know."""


def layout_mask(layout: Layout) -> Int[Tensor, "1 1 S 3"]:
    """What a model that uses the packed attention takes as its attention mask."""
    return layout.table_S3[None, None]


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "B A T D"],
    key: Float[Tensor, "B K T D"],
    value: Float[Tensor, "B K T E"],
    attention_mask: Int[Tensor, "1 1 S 3"] | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " A"] | None = None,
    **terms: Any,
) -> tuple[Float[Tensor, "B T A E"], None]:
    """Attention over the segments of a pack, in the form that transformers calls.

    Raises:
        ValueError: the layout did not arrive, or the model adds a term to its scores that is not known here.
    """
    if not _is_layout(attention_mask):
        raise ValueError(
            f"attention {PACKED!r} needs a pack's layout in place of a mask; to call this model in another way, "
            "select its own attention first: model.set_attn_implementation('eager')"
        )
    assert attention_mask is not None
    for name in _UNKNOWN_TERMS:
        if terms.get(name) is not None:
            raise ValueError(f"{type(module).__name__} adds {name} to its attention, which packing does not know")
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    states = query, key, value, attention_mask, s_aux
    if torch.compiler.is_compiling():
        return _opaque(*states, scale, sliding_window, softcap, dropout), None
    return _attend(*states, Terms(scale, sliding_window, softcap, dropout)), None


AttentionInterface.register(PACKED, packed_attention)


def _is_layout(mask: Tensor | None) -> bool:
    return mask is not None and mask.dtype == torch.int64 and mask.dim() == 4 and mask.shape[-1] == 3


def _attend(
    query: Tensor, key: Tensor, value: Tensor, table_11S3: Tensor, sinks_A: Tensor | None, terms: Terms
) -> Tensor:
    layout = _read(table_11S3.cpu().contiguous().numpy().tobytes())
    if terms.window is not None and terms.window >= layout.longest:
        # One that hides nothing would only keep a kernel from its plain case.
        terms = dataclasses.replace(terms, window=None)
    return attend(query, key, value, layout, terms, sinks_A)


@functools.lru_cache(maxsize=4)
def _read(table: bytes) -> Layout:
    """A table's layout, read once for the layers that follow."""
    return Layout.of(torch.frombuffer(bytearray(table), dtype=torch.int64).reshape(-1, 3))


_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor table, Tensor? sinks, float scale, SymInt? window, float? softcap"
)


@torch.library.custom_op("grmlight::packed_attention", mutates_args=(), schema=f"{_SCHEMA}, float dropout) -> Tensor")
def _opaque(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    sinks: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    if dropout:
        raise ValueError(
            f"attention dropout of {dropout} does not go with torch.compile here; set the backbone's config "
            "attention_dropout to 0, or do not compile"
        )
    return _attend(query, key, value, table, sinks, Terms(scale, window, softcap)).contiguous()


@_opaque.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *terms: Any) -> Tensor:  # noqa: ARG001
    batch, heads, tokens, _ = query.shape
    return query.new_empty(batch, tokens, heads, value.shape[-1])


@torch.library.custom_op(
    "grmlight::packed_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_SCHEMA[1:]}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _opaque_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    sinks: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # An operator's kernel runs below autograd; this brings it back.
    with torch.inference_mode(False), torch.enable_grad():
        query, key, value = (each.detach().requires_grad_() for each in (query, key, value))
        sinks = None if sinks is None else sinks.detach().requires_grad_()
        output = _attend(query, key, value, table, sinks, Terms(scale, window, softcap))
        inputs = [query, key, value, *([] if sinks is None else [sinks])]
        grads = [each.contiguous() for each in torch.autograd.grad(output, inputs, grad)]
    return grads[0], grads[1], grads[2], grad.new_empty(0) if sinks is None else grads[3]


@_opaque_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, table: Tensor, sinks: Tensor | None, *terms: Any) -> Any:  # noqa: ARG001
    empties = [each.new_empty(each.shape) for each in (query, key, value)]
    return *empties, grad.new_empty(0 if sinks is None else sinks.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    query, key, value, table, sinks, *ctx.terms, _ = inputs
    ctx.save_for_backward(query, key, value, table, sinks)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    *grads, grad_sinks = _opaque_backward(grad, *saved, *ctx.terms)
    return *grads, None, None if saved[4] is None else grad_sinks, None, None, None, None


_opaque.register_autograd(_backward, setup_context=_keep)
