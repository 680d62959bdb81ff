"""Which way a layer's packed attention is computed on a device, and whether that way is right there.

On the CPU it is the loop over segments. On a GPU it is one call a layer: a variable-length flash kernel for half
precision, flex attention where softcaps, sinks or float32 need it. The first call of a kind is preceded by a probe
against the loop, values and gradients; a kernel that is wrong, or does not run, is not used, with one visible line.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from grmlight.data.batch import Layout
from grmlight.models.flex import attend_blocks
from grmlight.models.segments import Terms, attend_segments
from grmlight.models.varlen import MAX_HEAD_SIZE, attend_runs, flash_attn_kernel, padded_head_size, torch_kernel

logger = logging.getLogger("grmlight")

Kind = Literal["varlen", "flash_attn", "flex"]
Attend = Callable[[Tensor, Tensor, Tensor, Layout, Terms, Tensor | None], Tensor]


def _varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, terms: Terms, sinks_A: Tensor | None) -> Tensor:
    assert sinks_A is None
    return attend_runs(query, key, value, layout, terms, torch_kernel)


def _flash(query: Tensor, key: Tensor, value: Tensor, layout: Layout, terms: Terms, sinks_A: Tensor | None) -> Tensor:
    assert sinks_A is None
    return attend_runs(query, key, value, layout, terms, flash_attn_kernel)


WAYS: Mapping[Kind, Attend] = {"varlen": _varlen, "flash_attn": _flash, "flex": attend_blocks}

TOLERANCES = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest difference of a probe, relative to the largest entry. Float32 may be computed as TF32."""

_PROBE = Layout(bounds=(0, 37, 107, 128, 128, 133, 150, 155), prefix=(-1, 0, 0, -1, 3, -1, 5), responses=(1, 2, 4, 6))
_PROBE_WINDOW = 19


@dataclasses.dataclass(frozen=True)
class _Use:
    """What a kernel is probed for."""

    kind: Kind
    device: torch.device
    dtype: torch.dtype
    query_heads: int
    key_heads: int
    key_size: int
    value_size: int
    windowed: bool
    softcap: float | None
    sinks: bool


def attend(
    query_BATD: Float[Tensor, "B A T D"],
    key_BKTD: Float[Tensor, "B K T D"],
    value_BKTE: Float[Tensor, "B K T E"],
    layout: Layout,
    terms: Terms,
    sinks_A: Float[Tensor, " A"] | None,
) -> Float[Tensor, "B T A E"]:
    """Packed attention by the way that fits the device; arguments as `attend_segments` takes them.

    Raises:
        ValueError: attention dropout that no kernel here has.
    """
    way: Attend = attend_segments
    if query_BATD.device.type == "cuda":
        sizes = query_BATD.shape[-1], value_BKTE.shape[-1]
        kind = kind_for(query_BATD.dtype, padded_head_size(*sizes), terms, sinks=sinks_A is not None)
        use = _Use(
            kind,
            query_BATD.device,
            query_BATD.dtype,
            query_BATD.shape[1],
            key_BKTD.shape[1],
            *sizes,
            windowed=terms.window is not None,
            softcap=terms.softcap,
            sinks=sinks_A is not None,
        )
        way = proven(use)
    return way(query_BATD, key_BKTD, value_BKTE, layout, terms, sinks_A)


def kind_for(dtype: torch.dtype, head_size: int, terms: Terms, *, sinks: bool) -> Kind:
    """The kernel for a layer on a GPU. ValueError where none has dropout."""
    flash = dtype in (torch.float16, torch.bfloat16) and head_size <= MAX_HEAD_SIZE and not sinks
    if flash and terms.softcap is None and not terms.dropout:
        return "varlen"
    if flash and importlib.util.find_spec("flash_attn") is not None:
        return "flash_attn"
    if terms.dropout:
        raise ValueError(
            f"attention dropout of {terms.dropout} needs the flash-attn package and half precision on a GPU; set the "
            "backbone's config attention_dropout to 0, or install flash-attn and train in bfloat16"
        )
    return "flex"


@functools.lru_cache(maxsize=64)
def proven(use: _Use) -> Attend:
    """The kernel, if a probe shows it right; else the loop, with a visible line."""
    try:
        difference = _probe(use)
        reason = f"it is {difference:.2g} of the largest entry away from the loop"
        if difference < TOLERANCES[use.dtype]:
            return WAYS[use.kind]
    except Exception as error:  # whatever a kernel raises on a device that it does not know
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    logger.warning(
        "attention kernel %s is not used here: %s. A loop over segments is: right, but slow", use.kind, reason
    )
    return attend_segments


def _probe(use: _Use) -> float:
    """Largest difference of values and gradients between a kernel and the loop in float32, relative to each's largest.

    NaN where a kernel gives NaN.

    It may run in the middle of any forward, so it sees nothing of what is switched on there.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(use.device, use.dtype)

    window = _PROBE_WINDOW if use.windowed else None
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(use.device.type, enabled=False),
        saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
    ):
        tokens = _PROBE.bounds[-1]
        states = [
            random(1, use.query_heads, tokens, use.key_size),
            random(1, use.key_heads, tokens, use.key_size),
            random(1, use.key_heads, tokens, use.value_size),
            *([random(use.query_heads)] if use.sinks else []),
        ]
        weights = random(1, tokens, use.query_heads, use.value_size)
        terms = Terms(use.key_size**-0.5, window, use.softcap)
        found = _values_and_gradients(WAYS[use.kind], states, weights, terms)
        expected = _values_and_gradients(attend_segments, [state.float() for state in states], weights.float(), terms)
    errors = [(a.float() - b).abs().max() / b.abs().max() for a, b in zip(found, expected, strict=True)]
    return torch.stack(errors).max().item()


def _values_and_gradients(attend: Attend, states: list[Tensor], weights: Tensor, terms: Terms) -> list[Tensor]:
    leaves = [state.detach().clone().requires_grad_() for state in states]
    query, key, value, *sinks = leaves
    output = attend(query, key, value, _PROBE, terms, sinks[0] if sinks else None)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)]
