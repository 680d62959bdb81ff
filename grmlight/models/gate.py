"""The packing gate: is a model's packed forward proven right? Wrong numbers are never silent.

A model passes if, on a shrunken twin of its config with random weights in float32, every layer calls the packed
attention once, all layers are of a kind that packs, and a pack of two groups gives the hidden states of its sequences
run one by one, while the same pack with only its positions restarted does not.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from grmlight.data.batch import Layout
from grmlight.models.attention import packed_attention
from grmlight.models.backbone import decoder, language_head, seeded
from grmlight.models.logprobs import LogitTransform, token_logps

TOLERANCE = 1e-4
"""Largest difference, relative to the largest hidden state."""

_PACKABLE = frozenset({"full_attention", "sliding_attention"})
_COUNTED = "grmlight_counted"
_WINDOW = 7
_PROMPTS = (13, 10)
_RESPONSES = ((9, 8), (5,))
_MAX_SIZES = {"vocab_size": 128, "intermediate_size": 64, "moe_intermediate_size": 64, "ffn_hidden_size": 64}
_MIN_LAYERS = 4


@dataclasses.dataclass(frozen=True)
class GateResult:
    """What the gate found.

    Attributes:
        ok: packing is proven right.
        reason: why it is not; empty if it is.
        logps: whether the log-probs that `logprobs` computes are the model's; None where no twin could say.
    """

    ok: bool
    reason: str = ""
    logps: bool | None = None


def packs(config: PretrainedConfig) -> GateResult:
    """Probe a twin of the config. No generator of the caller's is changed."""
    return _packs(type(config), config.to_json_string(use_diff=False))


@torch.no_grad()
def logps_agree(lm: PreTrainedModel, tokens: int = 4) -> bool | None:
    """Whether the log-probs that `logprobs` computes are those of the model's own forward; None if that fails."""
    ids_T = torch.arange(1, tokens + 1)
    try:
        head = language_head(lm)
        hidden_TH = decoder(lm)(input_ids=ids_T[None], use_cache=False).last_hidden_state[0]
        logits_TV = lm(input_ids=ids_T[None], use_cache=False).logits[0].float()
        logps_T = token_logps(hidden_TH, head.weight, head.bias, ids_T, LogitTransform.of(lm.config))
    except Exception:  # whatever a foreign model raises
        return None
    expected_T = logits_TV.log_softmax(dim=-1)[torch.arange(tokens), ids_T]
    tolerance = TOLERANCE if hidden_TH.dtype == torch.float32 else 0.05
    return torch.allclose(logps_T, expected_T, rtol=tolerance, atol=tolerance)


@functools.lru_cache(maxsize=32)
def _packs(config_class: type[PretrainedConfig], entries: str) -> GateResult:
    config = config_class.from_dict(json.loads(entries))
    with seeded(0), torch.device("cpu"), torch.no_grad():
        try:
            twin_config = shrink(config)
            twin = _build(twin_config, "eager")
        except Exception as error:  # whatever a foreign config class raises
            return GateResult(ok=False, reason=f"no small twin of it can be built: {_brief(error)}")
        result = _probe(config, twin_config, twin)
        return dataclasses.replace(result, logps=logps_agree(twin))


def _probe(config: PretrainedConfig, twin_config: PretrainedConfig, twin: PreTrainedModel) -> GateResult:
    foreign = set(_layer_types(config)) - _PACKABLE
    if foreign:
        return GateResult(ok=False, reason=f"it has layers of kind {', '.join(sorted(foreign))}")
    calls: list[nn.Module] = []
    layers = twin_config.get_text_config(decoder=True).num_hidden_layers
    ids_T, positions_T, layout = _probe_pack()
    try:
        packed = _build(twin_config, _COUNTED)
        packed.load_state_dict(twin.state_dict())
        states_TH = _run(packed, ids_T, positions_T, layout, calls)
        if len(calls) != layers:
            return GateResult(ok=False, reason=f"{len(calls)} of its {layers} layers use exchangeable attention")
        whole = Layout(bounds=(0, len(ids_T)), prefix=(-1,), responses=())
        control_TH = _run(packed, ids_T, positions_T, whole, [])
        expected_TH = _one_by_one(twin, ids_T, layout)
    except Exception as error:  # whatever a foreign model raises
        return GateResult(ok=False, reason=_brief(error))
    if not (_difference(states_TH, expected_TH) < TOLERANCE):
        return GateResult(ok=False, reason="a pack and its sequences one by one differ")
    if not (_difference(control_TH, expected_TH) > TOLERANCE):
        return GateResult(ok=False, reason="the probe cannot tell a right pack from a wrong one")
    return GateResult(ok=True)


def shrink(config: PretrainedConfig) -> PretrainedConfig:
    """A small copy: few heads of the same size, few layers of every kind, windows shorter than the probe's prompts."""
    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    kinds, layers = _layer_types(text), text.num_hidden_layers
    needed = 1 + max((kinds.index(kind) for kind in set(kinds)), default=0)
    _cut_layers(text, layers, min(layers, max(needed, _MIN_LAYERS)))
    _cut_heads(text)
    for name, size in _MAX_SIZES.items():
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, min(getattr(text, name), size))
    if getattr(text, "sliding_window", None) is not None:
        text.sliding_window = min(text.sliding_window, _WINDOW)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(text, name, None) is not None:
            setattr(text, name, 0)
    return config


def _cut_layers(text: PretrainedConfig, layers: int, kept: int) -> None:
    """Keep the first layers, in every list that has one entry a layer."""
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == layers:
            setattr(text, name, value[:kept])
    text.num_hidden_layers = kept


def _cut_heads(text: PretrainedConfig) -> None:
    """At most two key heads with at most two query heads each; their size stays, as rotary tables depend on it."""
    heads = text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    kept_keys = min(key_heads, 2)
    kept = kept_keys * min(heads // key_heads, 2)
    text.hidden_size = text.hidden_size // heads * kept
    text.num_attention_heads = kept
    if getattr(text, "num_key_value_heads", None) is not None:
        text.num_key_value_heads = kept_keys


def _layer_types(config: PretrainedConfig) -> list[str]:
    return list(getattr(config.get_text_config(decoder=True), "layer_types", None) or [])


def _build(config: PretrainedConfig, attention: str) -> PreTrainedModel:
    """A twin in float32 and eval mode whose weights are large enough for every part to show."""
    config = copy.deepcopy(config)
    twin = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()
    for parameter in twin.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return twin


def _counted_attention(
    module: nn.Module, *states: Any, calls: list[nn.Module] | None = None, **terms: Any
) -> tuple[Tensor, None]:
    """Packed attention that notes each call in a list, which travels beside the layout."""
    if calls is None:
        raise ValueError("it does not hand a pack's layout down to its attention")
    calls.append(module)
    return packed_attention(module, *states, **terms)


AttentionInterface.register(_COUNTED, _counted_attention)


def _run(
    lm: PreTrainedModel, ids_T: Tensor, positions_T: Tensor, layout: Layout, calls: list[nn.Module]
) -> Float[Tensor, "T H"]:
    output = decoder(lm)(
        input_ids=ids_T[None], position_ids=positions_T[None], layout=layout, calls=calls, use_cache=False
    )
    return output.last_hidden_state[0]


def _one_by_one(lm: PreTrainedModel, ids_T: Tensor, layout: Layout) -> Float[Tensor, "T H"]:
    """The hidden states of a pack's tokens, each sequence run alone by the model's own attention."""
    run, expected = decoder(lm), []
    for segment, prefix in enumerate(layout.prefix):
        own = ids_T[layout.bounds[segment] : layout.bounds[segment + 1]]
        prompt = ids_T[layout.bounds[prefix] : layout.bounds[prefix + 1]] if prefix >= 0 else ids_T[:0]
        sequence = torch.cat([prompt, own])[None]
        expected.append(run(input_ids=sequence, use_cache=False).last_hidden_state[0, len(prompt) :])
    return torch.cat(expected)


def _probe_pack() -> tuple[Tensor, Tensor, Layout]:
    """Ids, positions and layout of two groups, one of two responses and one of one."""
    bounds, prefix, positions = [0], [], []
    for prompt, responses in zip(_PROMPTS, _RESPONSES, strict=True):
        owner = len(prefix)
        for length, start, seen in [(prompt, 0, -1), *((length, prompt, owner) for length in responses)]:
            bounds.append(bounds[-1] + length)
            prefix.append(seen)
            positions.extend(range(start, start + length))
    responses = tuple(segment for segment, seen in enumerate(prefix) if seen >= 0)
    ids_T = torch.randint(1, 32, (bounds[-1],))
    return ids_T, torch.tensor(positions), Layout(tuple(bounds), tuple(prefix), responses)


def _difference(states_TH: Tensor, expected_TH: Tensor) -> float:
    """Largest difference over largest expected entry; NaN where either is not finite."""
    return ((states_TH - expected_TH).abs().max() / expected_TH.abs().max()).item()


def _brief(error: Exception, length: int = 160) -> str:
    if isinstance(error, KeyError) and _COUNTED in error.args:
        return "its attention cannot be exchanged"
    name = "" if type(error) is ValueError else f"{type(error).__name__}: "
    text = " ".join(f"{name}{error}".split())
    return text if len(text) <= length else f"{text[:length]}..."
