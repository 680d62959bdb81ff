"""Drawing tokens: random streams against plain integers, truncation against transformers and a loop."""

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from grmlight.policy.draw import Picker, at_quantile, truncated, uniforms

MASK = 2**64 - 1


def _slow_mix(state):
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_streams_are_those_of_plain_integers():
    rows = [(0, 0), (0, 1), (1, 0), (999, 12_345), (2**40, 3)]
    for seed, token in itertools.product((0, 1, -1, 2**63 + 5), (0, 1, 77)):
        found = uniforms(seed, np.array([p for p, _ in rows]), np.array([s for _, s in rows]), token)
        for value, (prompt, sample) in zip(found, rows, strict=True):
            state = seed & MASK
            for entry in (prompt, sample, token):
                state = _slow_mix(state) ^ entry
            assert value == (_slow_mix(state) >> 16) / 2**48


def test_splitmix_is_the_published_one():
    # The first numbers of SplitMix64 with seed 1234567, as its authors' C code prints them.
    state, found = 1234567, []
    for _ in range(3):
        found.append(_slow_mix(state))
        state = (state + 0x9E3779B97F4A7C15) & MASK
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("axis", ["seed", "prompt", "sample", "token"])
def test_numbers_are_uniform_and_unrelated_along_each_axis(axis):
    count = np.arange(20_000)
    zeros = np.zeros_like(count)
    if axis in ("prompt", "sample"):
        found = uniforms(3, count if axis == "prompt" else zeros, count if axis == "sample" else zeros, 0)
    else:
        one = np.zeros(1, np.int64)
        pairs = ((n, 0) if axis == "seed" else (3, n) for n in count[:4000].tolist())
        found = np.array([uniforms(seed, one, one, token)[0] for seed, token in pairs])
    n = len(found)
    gaps = np.abs(np.sort(found) - (np.arange(n) + 0.5) / n).max()
    assert gaps < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at 0.1%
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 4 / math.sqrt(n)


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(1, 1, 0), (0.7, 1, 5), (1.3, 0.8, 0), (0.5, 0.6, 9)])
def test_truncation_is_that_of_transformers(temperature, top_p, top_k):
    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(1)) * 2
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(None, logits).softmax(-1)
    found = truncated(logits, temperature, top_p, top_k)
    torch.testing.assert_close(found / found.sum(-1, keepdim=True), expected)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    generator = torch.Generator().manual_seed(2)
    for row in torch.randn(50, 12, generator=generator, dtype=torch.float64):
        probabilities = row.softmax(-1).tolist()
        kept, total = set(), 0.0
        for token in sorted(range(12), key=lambda token: -probabilities[token]):
            if total >= 0.7:
                break
            kept.add(token)
            total += probabilities[token]
        assert set(truncated(row[None], 1.0, 0.7, 0)[0].nonzero()[:, 0].tolist()) == kept


def test_a_quantile_finds_its_token():
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(200, 9, generator=generator) * (torch.rand(200, 9, generator=generator) < 0.5)
    weights[:, 4] += 0.01
    quantiles = torch.rand(200, generator=generator, dtype=torch.float64)
    quantiles[:3] = torch.tensor([0.0, 1 - 2**-48, 0.5])
    for found, row, quantile in zip(at_quantile(weights, quantiles).tolist(), weights, quantiles.tolist(), strict=True):
        wanted, total = quantile * row.double().sum().item(), 0.0
        passed = []
        for token, weight in enumerate(row.double().tolist()):
            total += weight
            passed += [token] if total > wanted else []
        assert found == passed[0]
        assert row[found] > 0


def test_frequencies_are_probabilities():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    rows = [(0, sample) for sample in range(20_000)]
    drawn = Picker(0.8, 1.0, 0, 7, rows)(logits.expand(len(rows), -1), torch.arange(len(rows)), 5)
    shares = torch.bincount(drawn, minlength=4) / len(rows)
    assert (shares - (logits[0] / 0.8).softmax(-1)).abs().max() < 0.015


def test_greedy_takes_the_most_probable():
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(4))
    assert torch.equal(Picker(0, 0.1, 2, 7, [(0, 0)] * 6)(logits, torch.arange(6), 0), logits.argmax(-1))
