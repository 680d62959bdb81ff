"""Packed attention as transformers calls it, and as torch.compile sees it."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from grmlight.data.batch import Layout
from grmlight.models import attention, packed_attention
from grmlight.models.attention import layout_mask
from tests.models.groups import mixed_groups, sequences
from tests.models.plain import assert_same_gradients
from tests.models.slow_attention import layout_of, random_states
from tests.reference.packing import pack_groups
from tests.tiny_models import tiny_reward_model

LAYOUT = layout_of((11, [9, 7, 1]), (0, [5, 14]))


def packs_of_all_kinds(count: int) -> list:
    rng = random.Random(0)

    def group():
        return sequences(rng, rng.randrange(0, 12), *(rng.randrange(2, 9) for _ in range(rng.randrange(1, 5))))

    return [pack_groups([group() for _ in range(rng.randrange(2, 5))]) for _ in range(count)]


def test_a_layout_survives_its_table():
    again = Layout.of(LAYOUT.table_S3)
    assert again == LAYOUT
    assert hash(again) == hash(LAYOUT)
    assert torch.equal(again.table_S3, LAYOUT.table_S3)


def test_the_longest_sequence():
    assert LAYOUT.longest == 11 + 9
    assert layout_of((30, [2]), (0, [31])).longest == 32
    assert layout_of((30, [2]), (0, [33])).longest == 33


def test_a_window_that_hides_nothing_is_none(monkeypatch):
    seen = []
    monkeypatch.setattr(attention, "attend", lambda q, k, v, layout, terms, sinks: seen.append(terms.window))
    for window in (LAYOUT.longest - 1, LAYOUT.longest):
        packed_attention(nn.Module(), *random_states(LAYOUT), layout_mask(LAYOUT), sliding_window=window)
    assert seen == [LAYOUT.longest - 1, None]


@pytest.mark.parametrize("mask", [None, torch.zeros(1, 1, 47, 47), torch.ones(1, 1, 47, 47, dtype=torch.bool)])
def test_anything_but_a_layout_is_refused(mask):
    with pytest.raises(ValueError, match="needs a pack's layout"):
        packed_attention(nn.Module(), *random_states(LAYOUT), mask)


def test_unknown_terms_are_refused():
    with pytest.raises(ValueError, match="position_bias"):
        packed_attention(nn.Module(), *random_states(LAYOUT), layout_mask(LAYOUT), position_bias=torch.zeros(1))


def test_the_scale_is_the_head_sizes_unless_it_is_given():
    states = random_states(LAYOUT)
    plain, _ = packed_attention(nn.Module(), *states, layout_mask(LAYOUT))
    given, _ = packed_attention(nn.Module(), *states, layout_mask(LAYOUT), scaling=8**-0.5)
    other, _ = packed_attention(nn.Module(), *states, layout_mask(LAYOUT), scaling=0.1)
    assert torch.equal(plain, given)
    assert not torch.allclose(plain, other)


def test_autocast_computes_in_its_dtype():
    query, key, value = random_states(LAYOUT, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = packed_attention(nn.Module(), query, key, value.bfloat16(), layout_mask(LAYOUT))
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss", "stablelm"])
def test_a_compiled_model_is_the_same_and_packs_of_any_layout_share_its_code(architecture):
    torch._dynamo.reset()
    model, twin = tiny_reward_model(architecture), tiny_reward_model(architecture)
    counter = CompileCounterWithBackend("aot_eager")
    # The gpt_oss experts loop over what was routed, which no compiler takes as one graph.
    compiled = torch.compile(model, backend=counter, fullgraph=architecture != "gpt_oss")
    compilations = []
    for batch in packs_of_all_kinds(8):
        rewards, expected = compiled(batch).rewards_N, twin(batch).rewards_N
        torch.testing.assert_close(rewards, expected, rtol=1e-5, atol=1e-5)
        rewards.sum().backward()
        expected.sum().backward()
        assert_same_gradients(model, twin)
        compilations.append(counter.frame_count)
    assert compilations[-1] <= 3 * compilations[0]
    assert compilations[-1] == compilations[3]


def test_to_a_compiler_attention_is_one_operator():
    found = []

    def look(graph, inputs):
        found.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch._dynamo.reset()
    model = tiny_reward_model("gemma2").eval()
    torch.compile(model, backend=look, fullgraph=True)(pack_groups(mixed_groups()))
    assert sum("packed_attention" in str(target) for target in found) == 2
    assert not any("softmax" in str(target) or "scaled_dot" in str(target) for target in found)


def test_compiled_with_gradient_checkpointing():
    torch._dynamo.reset()
    model, twin = tiny_reward_model("mistral", gradient_checkpointing=True), tiny_reward_model("mistral")
    batch = pack_groups(mixed_groups())
    torch.compile(model, backend="aot_eager")(batch).rewards_N.sum().backward()
    twin(batch).rewards_N.sum().backward()
    assert_same_gradients(model, twin)


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
def test_the_operator_keeps_torchs_rules(sinks):
    sinks_A = torch.randn(4, requires_grad=True) if sinks else None
    states = random_states(LAYOUT, sizes=(8, 6), dtype=torch.float32)
    torch.library.opcheck(attention._opaque, (*states, layout_mask(LAYOUT), sinks_A, 0.3, 5, 1.5, 0.0))


def test_dropout_does_not_go_with_a_compiler():
    torch._dynamo.reset()
    model = tiny_reward_model("llama", config={"attention_dropout": 0.5})
    with pytest.raises(ValueError, match="attention_dropout to 0") as caught:
        torch.compile(model, backend="aot_eager", fullgraph=True)(pack_groups(mixed_groups()))
    assert "\n" not in str(caught.value)
