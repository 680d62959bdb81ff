"""The gate: is a model's packed forward proven right, and if not, its padded one? Wrong numbers are never silent.

A model packs if, on a shrunken twin of its config with random weights in float32, every layer calls the packed
attention once, all layers are of a kind that packs, and a pack of two groups gives the hidden states of its sequences
run one by one, while the same pack with only its positions restarted does not. It pads if padded rows give them.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from grmlight.data.batch import GroupBatch, Layout
from grmlight.models.attention import layout_mask, packed_attention
from grmlight.models.backbone import decoder, language_head
from grmlight.models.logprobs import LogitTransform, token_logps
from grmlight.models.modes import seeded
from grmlight.models.padded import padded_states
from grmlight.models.twin import build, layer_types, shrink

TOLERANCE = 1e-4
"""Largest difference, relative to the largest hidden state."""

HALF_TOLERANCE = 0.05
"""The same where the model itself is probed in half precision."""

_PACKABLE = frozenset({"full_attention", "sliding_attention"})
_COUNTED = "grmlight_counted"
_PROMPTS = (13, 10)
_RESPONSES = ((9, 8), (5,))

_calls: contextvars.ContextVar[list[nn.Module]] = contextvars.ContextVar("calls of the counted attention")


@dataclasses.dataclass(frozen=True)
class GateResult:
    """What the gate found.

    Attributes:
        ok: packing is proven right.
        reason: why it is not; empty if it is.
        logps: whether the log-probs that `logprobs` computes are the model's, and each token's without a look at
            those that follow; None where no twin could say.
    """

    ok: bool
    reason: str = ""
    logps: bool | None = None


@dataclasses.dataclass(frozen=True)
class _Question:
    """A config that can be looked up: by its entries, since not every config can be read back from them."""

    config: PretrainedConfig = dataclasses.field(compare=False)
    config_class: type[PretrainedConfig]
    entries: str

    @classmethod
    def about(cls, config: PretrainedConfig) -> _Question:
        """The question whether this config's models pack or pad."""
        return cls(config, type(config), config.to_json_string(use_diff=False))


def packs(config: PretrainedConfig) -> GateResult:
    """Probe a twin of the config. No generator of the caller's is changed."""
    return _packs(_Question.about(config))


def pads(config: PretrainedConfig) -> str | None:
    """Why padded rows are wrong for a twin of the config: empty if they are right, None where no twin could say."""
    return _pads(_Question.about(config))


@torch.no_grad()
def padding_fault(lm: PreTrainedModel, alone: PreTrainedModel | None = None) -> str:
    """Why padded rows are wrong for a model in eval mode; empty if they are right.

    Args:
        lm: the model.
        alone: runs the sequences one by one; default: the model itself.
    """
    batch = _probe_batch(next(lm.parameters()).device)
    try:
        found_LH = padded_states(decoder(lm), batch).at_source()
        own_LH = _one_by_one(alone or lm, batch).index_select(0, batch.source_L)
    except Exception as error:  # whatever a foreign model raises
        return _brief(error)
    tolerance = TOLERANCE if found_LH.dtype == torch.float32 else HALF_TOLERANCE
    if not (_difference(found_LH, own_LH) < tolerance):
        return "padded rows and their sequences one by one differ"
    return ""


@torch.no_grad()
def logps_agree(lm: PreTrainedModel, tokens: int = 4) -> bool | None:
    """Whether the log-probs that `logprobs` computes are those of a causal model's own forward; None if that fails."""
    ids_T = torch.arange(1, tokens + 1)
    try:
        head = language_head(lm)
        hidden_TH = decoder(lm)(input_ids=ids_T[None], use_cache=False).last_hidden_state[0]
        before_TH = decoder(lm)(input_ids=ids_T[None, :-1], use_cache=False).last_hidden_state[0]
        logits_TV = lm(input_ids=ids_T[None], use_cache=False).logits[0].float()
        logps_T = token_logps(hidden_TH, head.weight, head.bias, ids_T, LogitTransform.of(lm.config))
    except Exception:  # whatever a foreign model raises
        return None
    expected_T = logits_TV.log_softmax(dim=-1)[torch.arange(tokens), ids_T]
    tolerance = TOLERANCE if hidden_TH.dtype == torch.float32 else HALF_TOLERANCE
    causal = _difference(hidden_TH[:-1], before_TH) < tolerance
    return causal and torch.allclose(logps_T, expected_T, rtol=tolerance, atol=tolerance)


@functools.lru_cache(maxsize=32)
def _packs(question: _Question) -> GateResult:
    kinds = sorted(set(layer_types(question.config)) - _PACKABLE)
    foreign = f"it has layers of kind {', '.join(kinds)}" if kinds else ""
    with seeded(0), torch.device("cpu"), torch.no_grad():
        try:
            twin_config = shrink(question.config)
            twin = build(twin_config, "eager")
            _one_by_one(twin, _probe_batch(torch.device("cpu")))
        except Exception as error:  # whatever a foreign config class or model raises
            return GateResult(ok=False, reason=foreign or f"no small twin of it can be built and run: {_brief(error)}")
        reason = foreign or _packing_fault(twin_config, twin)
        return GateResult(ok=not reason, reason=reason, logps=logps_agree(twin))


@functools.lru_cache(maxsize=32)
def _pads(question: _Question) -> str | None:
    with seeded(0), torch.device("cpu"), torch.no_grad():
        try:
            twin_config = shrink(question.config)
            twin, rows = build(twin_config, "eager"), build(twin_config, None)
            rows.load_state_dict(twin.state_dict())
            _one_by_one(twin, _probe_batch(torch.device("cpu")))
        except Exception:  # whatever a foreign config class or model raises
            return None
        return padding_fault(rows, twin)


def _packing_fault(twin_config: PretrainedConfig, twin: PreTrainedModel) -> str:
    """Why a twin's pack is wrong; empty if it is right."""
    layers = twin_config.get_text_config(decoder=True).num_hidden_layers
    batch, calls = _probe_batch(torch.device("cpu")), []
    try:
        packed = build(twin_config, _COUNTED)
        packed.load_state_dict(twin.state_dict())
        states_TH = _run(packed, batch, batch.layout, calls)
        if len(calls) != layers:
            return f"{len(calls)} of its {layers} layers use exchangeable attention"
        control_TH = _run(packed, batch, Layout(bounds=(0, len(batch.input_ids_T)), prefix=(-1,), responses=()), [])
    except Exception as error:  # whatever a foreign model raises
        return _brief(error) if calls else "its attention cannot be exchanged"
    expected_TH = _one_by_one(twin, batch)
    if not (_difference(states_TH, expected_TH) < TOLERANCE):
        return "a pack and its sequences one by one differ"
    if not (_difference(control_TH, expected_TH) > TOLERANCE):
        return "the probe cannot tell a right pack from a wrong one"
    return ""


def _counted_attention(module: nn.Module, *states: Any, **terms: Any) -> tuple[Tensor, None]:
    """Packed attention that notes each call."""
    _calls.get().append(module)
    return packed_attention(module, *states, **terms)


AttentionInterface.register(_COUNTED, _counted_attention)


def _run(lm: PreTrainedModel, batch: GroupBatch, layout: Layout, calls: list[nn.Module]) -> Float[Tensor, "T H"]:
    """The hidden states of the probe's pack under a layout; calls of attention go to `calls`."""
    token = _calls.set(calls)
    try:
        output = decoder(lm)(
            input_ids=batch.input_ids_T[None],
            position_ids=batch.positions_T[None],
            attention_mask=layout_mask(layout),
            use_cache=False,
        )
    finally:
        _calls.reset(token)
    return output.last_hidden_state[0]


def _one_by_one(lm: PreTrainedModel, batch: GroupBatch) -> Float[Tensor, "T H"]:
    """The hidden states of a pack's tokens, each sequence run alone by the model's own attention."""
    run, expected, ids_T, layout = decoder(lm), [], batch.input_ids_T, batch.layout
    for segment, prefix in enumerate(layout.prefix):
        own = ids_T[layout.bounds[segment] : layout.bounds[segment + 1]]
        prompt = ids_T[layout.bounds[prefix] : layout.bounds[prefix + 1]] if prefix >= 0 else ids_T[:0]
        sequence = torch.cat([prompt, own])[None]
        expected.append(run(input_ids=sequence, use_cache=False).last_hidden_state[0, len(prompt) :])
    return torch.cat(expected)


def _probe_batch(device: torch.device) -> GroupBatch:
    """Two groups, one of two responses and one of one; every response token counts as scored."""
    bounds, prefix, positions = [0], [], []
    for prompt, responses in zip(_PROMPTS, _RESPONSES, strict=True):
        owner = len(prefix)
        for length, start, seen in [(prompt, 0, -1), *((length, prompt, owner) for length in responses)]:
            bounds.append(bounds[-1] + length)
            prefix.append(seen)
            positions.extend(range(start, start + length))
    responses = tuple(segment for segment, seen in enumerate(prefix) if seen >= 0)
    own = [torch.arange(bounds[segment], bounds[segment + 1]) for segment in responses]
    source_L, none = torch.cat(own), torch.empty(0, dtype=torch.int64)
    ids_T = torch.randint(1, 32, (bounds[-1],), generator=torch.Generator().manual_seed(0))
    return GroupBatch(
        input_ids_T=ids_T,
        positions_T=torch.tensor(positions),
        layout=Layout(tuple(bounds), tuple(prefix), responses),
        last_N=torch.tensor([bounds[segment + 1] - 1 for segment in responses]),
        group_N=torch.tensor([0, 0, 1]),
        source_L=source_L,
        target_L=ids_T[source_L],
        response_L=torch.repeat_interleave(torch.tensor([len(tokens) for tokens in own])),
        better_C=none,
        worse_C=none,
        group_C=none,
        label_C=none.float(),
        margin_C=none.float(),
        weight_C=none.float(),
        row_C=none,
        count_G=torch.ones(len(_PROMPTS)),
        groups_in_step=len(_PROMPTS),
    ).to(device)


def _difference(states_TH: Tensor, expected_TH: Tensor) -> float:
    """Largest difference over largest expected entry; NaN where either is not finite."""
    return ((states_TH - expected_TH).abs().max() / expected_TH.abs().max()).item()


def _brief(error: Exception, length: int = 160) -> str:
    name = "" if type(error) is ValueError else f"{type(error).__name__}: "
    text = " ".join(f"{name}{error}".split())
    return text if len(text) <= length else f"{text[:length]}..."
