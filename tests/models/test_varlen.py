"""What goes into a variable-length kernel gives packed attention, if the kernel keeps its promise."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from grmlight.models.segments import Terms, attend_segments
from grmlight.models.varlen import attend_runs, flash_attn_kernel, padded_head_size, runs_of, torch_kernel, window_size
from tests.models.slow_attention import layout_of, random_layouts, random_states, values_and_gradients, varlen


@pytest.fixture
def kept_promises(monkeypatch):
    """Both packages' functions, as their documents define them, in plain torch. Returns what they were called with."""
    calls = []

    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
        calls.append((window_size, enable_gqa))
        assert enable_gqa == (q.shape[1] != k.shape[1])
        return varlen(q, k, v, cu_q, cu_k, max_q, max_k, Terms(scale), window_size)

    def flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, max_q, max_k, dropout_p, softmax_scale, causal, window_size, softcap
    ):
        calls.append((window_size, dropout_p, softcap))
        assert causal
        return varlen(q, k, v, cu_q, cu_k, max_q, max_k, Terms(softmax_scale, softcap=softcap or None), window_size)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    return calls


@pytest.mark.parametrize("kernel", [torch_kernel, flash_attn_kernel])
@pytest.mark.parametrize("terms", [Terms(0.3), Terms(0.2, window=7)], ids=["full", "window"])
def test_runs_give_the_loop(kept_promises, kernel, terms):
    for layout in random_layouts(4):
        states = random_states(layout)
        found = values_and_gradients(lambda q, k, v, at=layout: attend_runs(q, k, v, at, terms, kernel), states)
        expected = values_and_gradients(lambda q, k, v, at=layout: attend_segments(q, k, v, at, terms), states)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert {call[0] for call in kept_promises} == {(-1 if terms.window is None else 6, 0)}
    assert len(kept_promises) == 4  # one call a layer


def test_softcap_and_dropout_reach_flash_attn(kept_promises):
    layout = random_layouts(1)[0]
    states, terms = random_states(layout), Terms(0.3, softcap=1.5)
    found, expected = attend_runs(*states, layout, terms, flash_attn_kernel), attend_segments(*states, layout, terms)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    attend_runs(*states, layout, Terms(0.3, dropout=0.1), flash_attn_kernel)
    assert kept_promises == [((-1, 0), 0.0, 1.5), ((-1, 0), 0.1, 0.0)]


@pytest.mark.parametrize("sizes", [(12, 12), (12, 6), (6, 12), (8, 8)])
def test_head_sizes_are_widened_and_unequal_ones_are_made_equal(kept_promises, sizes):
    layout, terms = random_layouts(1, seed=2)[0], Terms(0.3)
    states = random_states(layout, sizes=sizes)
    found = values_and_gradients(lambda q, k, v: attend_runs(q, k, v, layout, terms, torch_kernel), states)
    expected = values_and_gradients(lambda q, k, v: attend_segments(q, k, v, layout, terms), states)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("keys", "values", "size"), [(64, 64, 64), (192, 128, 192), (10, 6, 16), (80, 96, 96)])
def test_padded_head_size(keys, values, size):
    assert padded_head_size(keys, values) == size


def test_runs_of_a_pack():
    runs = runs_of(layout_of((2, [1, 3]), (0, [2])), torch.device("cpu"))
    assert runs.key_S.tolist() == [0, 1, *[0, 1, 2], *[0, 1, 3, 4, 5], *[6, 7]]
    assert runs.query_starts_R.tolist() == [0, 2, 3, 6, 8]
    assert runs.key_starts_R.tolist() == [0, 2, 5, 10, 12]
    assert (runs.max_queries, runs.max_keys) == (3, 5)
    assert runs is runs_of(layout_of((2, [1, 3]), (0, [2])), torch.device("cpu"))


def test_a_window_of_w_keys_holds_the_querys_own():
    assert window_size(None) == (-1, 0)
    assert window_size(7) == (6, 0)
