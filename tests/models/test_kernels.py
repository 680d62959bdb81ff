"""Which kernel a layer gets on a GPU, and the probe that no wrong kernel passes. The probe itself runs anywhere."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from grmlight.models import kernels
from grmlight.models.kernels import _Use, kind_for, proven
from grmlight.models.segments import Terms, attend_segments
from grmlight.models.varlen import attend_runs
from tests.models.slow_attention import layout_of, random_states, values_and_gradients, varlen

USE = _Use("varlen", torch.device("cpu"), torch.bfloat16, 4, 2, 16, 16, windowed=True, softcap=None, sinks=False)
LAYOUT = layout_of((11, [9, 7, 1]), (0, [5, 14]))
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _fresh_probes():
    proven.cache_clear()
    yield
    proven.cache_clear()


def faithful(query, key, value, layout, terms, sinks_A):
    """A variable-length kernel that keeps its promise."""

    def kernel(q, k, v, runs, terms):
        window = (-1 if terms.window is None else terms.window - 1, 0)
        starts = runs.query_starts_R, runs.key_starts_R
        return varlen(q, k, v, *starts, runs.max_queries, runs.max_keys, terms, window)

    return attend_runs(query, key, value, layout, terms, kernel)


def broken(change):
    """The loop with something changed about it."""

    def kernel(query, key, value, layout, terms, sinks_A):
        query, key, value, layout, terms = change(query, key, value, layout, terms)
        return attend_segments(query, key, value, layout, terms, sinks_A)

    return kernel


BROKEN = {
    "window off by one": lambda q, k, v, at, terms: (q, k, v, at, dataclasses.replace(terms, window=terms.window + 1)),
    "no window": lambda q, k, v, at, terms: (q, k, v, at, dataclasses.replace(terms, window=None)),
    "another scale": lambda q, k, v, at, terms: (q, k, v, at, dataclasses.replace(terms, scale=terms.scale * 1.2)),
    "forgets the prompt": lambda q, k, v, at, terms: (
        *(q, k, v),
        type(at)(at.bounds, (-1,) * len(at.prefix), at.responses),
        terms,
    ),
    "no gradient of the keys": lambda q, k, v, at, terms: (q, k.detach() + 0 * k, v, at, terms),
    "not finite": lambda q, k, v, at, terms: (q / 0, k, v, at, terms),
}


def test_the_kernel_for_a_layer(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for dtype in HALF:
        assert kind_for(dtype, 64, Terms(1.0), sinks=False) == "varlen"
        assert kind_for(dtype, 256, Terms(1.0, window=9), sinks=False) == "varlen"
        assert kind_for(dtype, 264, Terms(1.0), sinks=False) == "flex"
        assert kind_for(dtype, 64, Terms(1.0, softcap=30.0), sinks=False) == "flex"
        assert kind_for(dtype, 64, Terms(1.0), sinks=True) == "flex"
    assert kind_for(torch.float32, 64, Terms(1.0), sinks=False) == "flex"
    with pytest.raises(ValueError, match="attention_dropout to 0") as caught:
        kind_for(torch.bfloat16, 64, Terms(1.0, dropout=0.1), sinks=False)
    assert "\n" not in str(caught.value)


def test_flash_attn_is_taken_for_what_torch_lacks(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert kind_for(torch.bfloat16, 64, Terms(1.0), sinks=False) == "varlen"
    assert kind_for(torch.bfloat16, 64, Terms(1.0, softcap=30.0), sinks=False) == "flash_attn"
    assert kind_for(torch.bfloat16, 64, Terms(1.0, dropout=0.1), sinks=False) == "flash_attn"
    assert kind_for(torch.float32, 64, Terms(1.0, softcap=30.0), sinks=False) == "flex"
    with pytest.raises(ValueError, match="half precision"):
        kind_for(torch.float32, 64, Terms(1.0, dropout=0.1), sinks=False)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize("sizes", [(16, 16), (12, 8)])
@pytest.mark.parametrize("windowed", [True, False])
def test_a_faithful_kernel_passes_its_probe(monkeypatch, caplog, dtype, sizes, windowed):
    monkeypatch.setitem(kernels.WAYS, "varlen", faithful)
    use = dataclasses.replace(USE, dtype=dtype, key_size=sizes[0], value_size=sizes[1], windowed=windowed)
    with caplog.at_level(logging.WARNING, logger="grmlight"):
        assert proven(use) is faithful
    assert not caplog.records


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_wrong_kernel_is_not_used_and_one_line_says_so(monkeypatch, caplog, change):
    wrong = broken(change)
    monkeypatch.setitem(kernels.WAYS, "varlen", wrong)
    with caplog.at_level(logging.WARNING, logger="grmlight"):
        assert proven(USE) is proven(USE) is attend_segments
    (record,) = caplog.records
    assert "varlen is not used here" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_kernel_that_drops_sinks_or_softcaps_is_not_used(monkeypatch):
    drops = broken(lambda q, k, v, at, terms: (q, k, v, at, dataclasses.replace(terms, softcap=None)))
    monkeypatch.setitem(kernels.WAYS, "flex", drops)
    assert proven(dataclasses.replace(USE, kind="flex", softcap=2.0)) is attend_segments
    monkeypatch.setitem(kernels.WAYS, "flex", lambda *given: attend_segments(*given[:-1]))
    assert proven(dataclasses.replace(USE, kind="flex", sinks=True)) is attend_segments


def test_a_kernel_that_does_not_run_is_not_used(caplog):
    """torch's own kernel has no CPU form."""
    with caplog.at_level(logging.WARNING, logger="grmlight"):
        assert proven(USE) is attend_segments
    assert "varlen is not used here" in caplog.text


@pytest.mark.parametrize("around", ["checkpoint", "inference", "no_grad", "autocast"])
def test_the_probe_may_run_in_the_middle_of_anything(monkeypatch, around):
    monkeypatch.setitem(kernels.WAYS, "varlen", faithful)

    def layer(query, key, value):
        return proven(USE)(query, key, value, LAYOUT, Terms(0.3), None)

    states = random_states(LAYOUT)
    if around == "checkpoint":
        found = values_and_gradients(lambda *given: checkpoint(layer, *given, use_reentrant=False), states)
        expected = values_and_gradients(lambda *given: attend_segments(*given, LAYOUT, Terms(0.3)), states)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        return
    contexts = {
        "inference": torch.inference_mode(),
        "no_grad": torch.no_grad(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
    }
    with contexts[around]:
        assert proven(USE) is faithful


def test_the_probe_leaves_the_generators_alone(monkeypatch):
    monkeypatch.setitem(kernels.WAYS, "varlen", faithful)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    proven(USE)
    assert torch.equal(torch.get_rng_state(), before)
