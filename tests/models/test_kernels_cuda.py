"""The GPU's kernels against the loop, on a GPU. Nothing here runs without one."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch

from grmlight.models import kernels
from grmlight.models.kernels import attend, kind_for, proven
from grmlight.models.segments import Terms, attend_segments
from grmlight.models.varlen import padded_head_size
from tests.models.groups import mixed_groups
from tests.models.plain import plain_copy, plain_outputs
from tests.models.slow_attention import layout_of, random_states, values_and_gradients
from tests.reference.packing import pack_groups
from tests.tiny_models import PACKABLE, tiny_reward_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

LAYOUT = layout_of((300, [170, 40, 1]), (0, [130, 44]), (12, [600]))
TERMS = {
    "plain": Terms(0.2),
    "window": Terms(0.2, window=90),
    "softcap": Terms(0.2, softcap=5.0),
    "both": Terms(0.2, window=90, softcap=5.0),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("sizes", [(64, 64), (128, 128), (192, 128)])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_a_kernel_is_used_and_gives_the_loop(caplog, terms, sizes, sinks, dtype):
    proven.cache_clear()
    states = [each.detach().to("cuda", dtype).requires_grad_() for each in random_states(LAYOUT, (8, 2), sizes)]
    extra = [torch.randn(8, device="cuda", requires_grad=True)] if sinks else []
    with caplog.at_level(logging.WARNING, logger="grmlight"):
        found = values_and_gradients(
            lambda q, k, v, *s: attend(q, k, v, LAYOUT, terms, s[0] if s else None), [*states, *extra]
        )
    assert not caplog.records
    exact = [each.detach().double().requires_grad_() for each in (*states, *extra)]
    expected = values_and_gradients(
        lambda q, k, v, *s: attend_segments(q, k, v, LAYOUT, terms, s[0] if s else None), exact
    )
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).abs().max() <= kernels.TOLERANCES[dtype] * other.abs().max()


def test_one_call_a_layer_without_a_dense_mask():
    """A pack of many segments needs no memory of the order of its square."""
    layout = layout_of(*[(500, [300, 300])] * 32)
    states = [
        each.detach().to("cuda", torch.bfloat16).requires_grad_() for each in random_states(layout, (8, 2), (64, 64))
    ]
    for terms in (Terms(0.2), Terms(0.2, softcap=5.0)):
        attend(*states, layout, terms, None)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        attend(*states, layout, terms, None).sum().backward()
        assert torch.cuda.max_memory_allocated() - before < layout.bounds[-1] ** 2


@pytest.mark.parametrize("architecture", PACKABLE)
def test_models_in_bfloat16_and_float32(architecture):
    groups = mixed_groups()
    model = tiny_reward_model(architecture).eval()
    expected, _ = plain_outputs(plain_copy(model), groups, [[0] * len(group) for group in groups])
    model.to("cuda")
    batch = pack_groups(groups).to("cuda")
    torch.testing.assert_close(model(batch).rewards_N.cpu(), expected, rtol=1e-3, atol=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        rough = model(batch).rewards_N.cpu()
    assert (rough - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_gradient_checkpointing_on_the_device(architecture):
    batch = pack_groups(mixed_groups()).to("cuda")
    grads = []
    for checkpointing in (False, True):
        model = tiny_reward_model(architecture, gradient_checkpointing=checkpointing).to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            model(batch).rewards_N.sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        assert (one - other).abs().max() <= 0.05 * other.abs().max() + 1e-6


def test_a_compiled_model_on_the_device():
    torch._dynamo.reset()
    batch = pack_groups(mixed_groups()).to("cuda")
    model = tiny_reward_model("llama").to("cuda").eval()
    with torch.autocast("cuda", torch.bfloat16):
        expected = model(batch).rewards_N
        found = torch.compile(model)(batch).rewards_N
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_dropout_without_a_kernel_is_refused():
    if importlib.util.find_spec("flash_attn") is None:
        model = tiny_reward_model("llama", config={"attention_dropout": 0.5}).to("cuda")
        with pytest.raises(ValueError, match="attention_dropout to 0"):
            model(pack_groups(mixed_groups()).to("cuda"))
    assert kind_for(torch.bfloat16, padded_head_size(192, 128), Terms(1.0), sinks=False) == "varlen"
