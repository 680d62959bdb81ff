"""Log-probs of given tokens from hidden states, in chunks of rows, so that full logits never exist.

Notable decisions:

- A head that learns costs four products: its logits once more in backward. If they are few enough for one chunk's
  memory they are kept, and it costs three. A frozen head costs two: the gradient of the hidden states is made in
  forward, up to the factor that comes from above.
- torch's `linear_cross_entropy` costs four, for every head, and knows no softcap and no scale. At equal chunks its four
  take within a tenth of the time of the four here, so it is not used.
- Shape suffixes: L tokens, H hidden size, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PretrainedConfig

_CHUNK_ELEMENTS = {"cpu": 2**25, "cuda": 2**28}
"""Logits that exist at a time, at most, in float32: 128 MiB and 1 GiB. Backward needs as many while memory is fullest,
whether they are kept or made again."""

_MAX_ROWS = {"cpu": 1024, "cuda": 4096}
"""More rows gain nothing: on a CPU they leave its cache."""

_MIN_ROWS = 16


@dataclasses.dataclass(frozen=True)
class LogitTransform:
    """What a model does to the product of its LM head: `softcap * tanh(scale * product / softcap)`.

    Attributes:
        scale: factor (Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`).
        softcap: bound of the logits (Gemma-2's `final_logit_softcapping`), or None.
    """

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: PretrainedConfig) -> LogitTransform:
        """The transform that a model's config asks for."""
        text = config.get_text_config(decoder=True)
        scale = getattr(text, "logit_scale", None) or 1.0
        return cls(
            scale=scale / (getattr(text, "logits_scaling", None) or 1.0),
            softcap=getattr(text, "final_logit_softcapping", None),
        )


def token_logps(
    hidden_LH: Float[Tensor, "L H"],
    weight_VH: Float[Tensor, "V H"],
    bias_V: Float[Tensor, " V"] | None,
    target_L: Int[Tensor, " L"],
    transform: LogitTransform,
) -> Float[Tensor, " L"]:
    """Log-prob of each target under the LM head, float32, in nats; differentiable in hidden states, weight and bias.

    The product runs in autocast's dtype where autocast is on, everything after it in float32. With L = 0 the result is
    empty and still part of the graph, so that every rank sees a gradient for the LM head.
    """
    device = hidden_LH.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_LH, weight_VH = hidden_LH.to(dtype), weight_VH.to(dtype)
        bias_V = None if bias_V is None else bias_V.to(dtype)
    rows = chunk_rows(weight_VH.shape[0], device)
    with torch.autocast(device, enabled=False):
        return _TokenLogps.apply(hidden_LH, weight_VH, bias_V, target_L, transform, rows)


def chunk_rows(vocabulary: int, device: str) -> int:
    """Rows of one chunk on a kind of device."""
    most = _MAX_ROWS.get(device, _MAX_ROWS["cpu"])
    return max(_MIN_ROWS, min(most, chunk_elements(device) // vocabulary))


def chunk_elements(device: str) -> int:
    """Logits of one chunk on a kind of device, at most."""
    return _CHUNK_ELEMENTS.get(device, _CHUNK_ELEMENTS["cpu"])


def chunk_logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, transform: LogitTransform) -> Tensor:
    """Float32 logits of some rows, in place as far as possible."""
    product_CV = hidden_CH @ weight_VH.T
    if bias_V is not None:
        product_CV += bias_V
    logits_CV = product_CV.float()
    if transform.scale != 1.0:
        logits_CV *= transform.scale
    if transform.softcap is not None:
        logits_CV.div_(transform.softcap).tanh_().mul_(transform.softcap)
    return logits_CV


class _TokenLogps(torch.autograd.Function):
    """What forward leaves for backward: for a frozen head the finished gradient, else the inputs, and logits if few."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_LH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_L: Tensor,
        transform: LogitTransform,
        rows: int,
    ) -> Tensor:
        """The log-prob of each target, float32 [L], in nats.

        `ctx` keeps what backward reads, `rows` are those of a chunk; the rest as `token_logps` takes it.
        """
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        frozen = not (need_weight or need_bias)
        logps_L = torch.empty(len(target_L), dtype=torch.float32, device=hidden_LH.device)
        grad_LH = torch.empty_like(hidden_LH) if frozen and need_hidden else None
        keep = not frozen and logps_L.numel() * len(weight_VH) <= chunk_elements(hidden_LH.device.type)
        kept: list[Tensor] = []
        for start in range(0, len(target_L), rows):
            chunk = slice(start, start + rows)
            logits_CV = chunk_logits(hidden_LH[chunk], weight_VH, bias_V, transform)
            logps_L[chunk] = F.log_softmax(logits_CV, dim=-1).gather(1, target_L[chunk, None]).squeeze(1)
            if grad_LH is not None:
                grad_CV = _grad_product(logits_CV, torch.ones_like(logps_L[chunk]), target_L[chunk], transform)
                grad_LH[chunk] = grad_CV.to(weight_VH.dtype) @ weight_VH
            if keep:
                kept.append(logits_CV)
        if frozen:
            ctx.save_for_backward(grad_LH)
        else:
            ctx.save_for_backward(hidden_LH, weight_VH, bias_V, target_L, *kept)
        ctx.frozen, ctx.transform, ctx.rows = frozen, transform, rows
        return logps_L

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_L: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of hidden states, weight and bias, in their shapes and dtypes, None for what does not learn.

        `ctx` is what forward left, of which kept logits are used up; `grad_L` is the gradient of each log-prob.
        """
        if ctx.frozen:
            (scaled_LH,) = ctx.saved_tensors
            return (scaled_LH * grad_L[:, None]).to(scaled_LH.dtype), None, None, None, None, None
        hidden_LH, weight_VH, bias_V, target_L, *kept = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden_LH = torch.empty_like(hidden_LH) if need_hidden else None
        grad_weight_VH = torch.zeros_like(weight_VH) if need_weight else None
        grad_bias_V = torch.zeros_like(bias_V) if need_bias else None
        for number, start in enumerate(range(0, len(target_L), ctx.rows)):
            chunk = slice(start, start + ctx.rows)
            again = kept[number] if kept else chunk_logits(hidden_LH[chunk], weight_VH, bias_V, ctx.transform)
            grad_CV = _grad_product(again, grad_L[chunk], target_L[chunk], ctx.transform).to(weight_VH.dtype)
            if grad_hidden_LH is not None:
                grad_hidden_LH[chunk] = grad_CV @ weight_VH
            if grad_weight_VH is not None:
                grad_weight_VH.addmm_(grad_CV.T, hidden_LH[chunk])
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(dim=0)
        return grad_hidden_LH, grad_weight_VH, grad_bias_V, None, None, None


def _grad_product(logits_CV: Tensor, grad_C: Tensor, target_C: Tensor, transform: LogitTransform) -> Tensor:
    """Gradient of the log-probs with respect to the LM head's product; leaves the logits as they are."""
    grad_CV = F.softmax(logits_CV, dim=-1).mul_(-grad_C[:, None])
    grad_CV.scatter_add_(1, target_C[:, None], grad_C[:, None])
    if transform.softcap is not None:
        grad_CV *= 1 - (logits_CV / transform.softcap).square_()
    return grad_CV.mul_(transform.scale) if transform.scale != 1.0 else grad_CV
