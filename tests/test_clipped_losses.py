"""PPO's clipped losses against the formulas, one token at a time in float64."""

import math

import pytest
import torch

from grmlight import losses

RATIOS = [0.5, 0.79, 0.8, 1.0, 1.2, 1.21, 3.0]
ADVANTAGES = [-2.0, 0.0, 1.5]
GRID = [(ratio, advantage) for ratio in RATIOS for advantage in ADVANTAGES]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_clipped_objective_is_the_formula():
    log_ratio, advantage = tensor([math.log(r) for r, _ in GRID]), tensor([a for _, a in GRID])
    expected = [-min(r * a, min(max(r, 0.8), 1.2) * a) for r, a in GRID]
    assert losses.clipped_objective(log_ratio, advantage, 0.2).tolist() == pytest.approx(expected, rel=1e-12)


def test_what_is_clipped_pushes_no_further():
    log_ratio = tensor([math.log(r) for r, _ in GRID]).requires_grad_()
    losses.clipped_objective(log_ratio, tensor([a for _, a in GRID]), 0.2).sum().backward()
    assert log_ratio.grad is not None
    for (ratio, advantage), slope in zip(GRID, log_ratio.grad.tolist(), strict=True):
        if (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8):
            assert slope == 0
        elif 0.8 < ratio < 1.2 or advantage * (ratio - 1) < 0:
            assert slope == pytest.approx(-advantage * ratio)


@pytest.mark.parametrize("clip", [0.2, math.inf])
def test_the_clipped_value_loss_is_the_formula(clip):
    values, old, returns = [0.0, 1.0, 1.0, -3.0, 0.1], [0.0, 0.5, 1.5, 0.0, 0.0], [1.0, 1.0, 0.0, -5.0, 0.3]
    expected = []
    for v, o, r in zip(values, old, returns, strict=True):
        near = min(max(v, o - clip), o + clip)
        expected.append(0.5 * max((v - r) ** 2, (near - r) ** 2))
    assert losses.clipped_value_loss(tensor(values), tensor(old), tensor(returns), clip).tolist() == pytest.approx(
        expected, rel=1e-12
    )
