"""Losses against the formulas, written out with math in float64."""

import math

import pytest
import torch

from grmlight import losses

BETTER = [0.3, -1.2, 4.0, 0.0]
WORSE = [0.1, 0.7, -35.0, 0.0]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > -30 else x - math.log1p(math.exp(x))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("label", [1.0, 0.5, 0.8])
@pytest.mark.parametrize("margin", [0.0, 1.5])
def test_preference_loss_is_the_formula(smoothing, label, margin):
    found = losses.preference_loss(tensor(BETTER), tensor(WORSE), label, margin, smoothing)
    p = label * (1 - smoothing) + (1 - label) * smoothing
    for value, better, worse in zip(found.tolist(), BETTER, WORSE, strict=True):
        difference = better - worse - margin
        expected = -p * log_sigmoid(difference) - (1 - p) * log_sigmoid(-difference)
        assert value == pytest.approx(expected, rel=1e-12)


def test_a_tie_is_indifferent_to_the_sides():
    forth = losses.preference_loss(tensor(BETTER), tensor(WORSE), 0.5)
    back = losses.preference_loss(tensor(WORSE), tensor(BETTER), 0.5)
    torch.testing.assert_close(forth, back)


def test_text_losses_are_the_formulas():
    logps = [-3.0, -80.0, 0.0]
    sigmoid = losses.sft_log_sigmoid(tensor(logps), beta=0.1)
    assert sigmoid.tolist() == pytest.approx([-log_sigmoid(0.1 * value) for value in logps], rel=1e-12)
    assert losses.sft_nll(tensor(logps)).tolist() == [3.0, 80.0, 0.0]
    assert losses.sft_token_mean(tensor(logps), torch.tensor([2, 40, 0])).tolist() == [1.5, 2.0, 0.0]


def test_dpo_is_the_formula_with_and_without_reference():
    better, worse = [-5.0, -50.0], [-7.0, -20.0]
    plain = losses.dpo(tensor(better), tensor(worse), beta=0.1)
    assert plain.tolist() == pytest.approx([-log_sigmoid(0.2), -log_sigmoid(-3.0)], rel=1e-12)
    referred = losses.dpo(tensor(better), tensor(worse), 0.1, tensor([-6.0, -40.0]), tensor([-6.0, -30.0]))
    assert referred.tolist() == pytest.approx([-log_sigmoid(0.2), -log_sigmoid(-2.0)], rel=1e-12)


def test_dpo_follows_the_label():
    better, worse = [-5.0, -50.0], [-7.0, -20.0]
    found = losses.dpo(tensor(better), tensor(worse), 0.1, label_C=tensor([0.5, 0.75]))
    tie = -(log_sigmoid(0.2) + log_sigmoid(-0.2)) / 2
    assert found.tolist() == pytest.approx([tie, -0.75 * log_sigmoid(-3.0) - 0.25 * log_sigmoid(3.0)], rel=1e-12)


HINGES = [-4.0, 0.0, 0.5, 3.0, 25.0]
"""Log-ratio margins on both sides of every kink and target below."""


@pytest.mark.parametrize("label", [1.0, 0.5, 0.8])
def test_slic_is_the_formula(label):
    found = losses.slic(tensor(HINGES), 0.4, label).tolist()
    assert found == pytest.approx(
        [label * max(0.0, 1 - 0.4 * h) + (1 - label) * max(0.0, 1 + 0.4 * h) for h in HINGES], rel=1e-12
    )


@pytest.mark.parametrize("label", [1.0, 0.5, 0.8])
def test_ipo_is_the_formula_in_both_scales(label):
    paper = losses.ipo(tensor(HINGES), 0.2, "paper", label).tolist()
    assert paper == pytest.approx([label * (h - 2.5) ** 2 + (1 - label) * (h + 2.5) ** 2 for h in HINGES], rel=1e-12)
    daa = losses.ipo(tensor(HINGES), 0.4, "daa", label).tolist()
    assert daa == pytest.approx(
        [0.16 * (label * (h - 2.5) ** 2 + (1 - label) * (h + 2.5) ** 2) for h in HINGES], rel=1e-12
    )
    assert daa == pytest.approx([0.4**2 * each for each in paper], rel=1e-12)


def test_the_margin_pays_for_length_as_the_reward_does():
    """The optimum of `E[r - penalty |y|] - beta KL` among two responses has the h whose lengthened margin is r's."""
    beta, penalty, rewards, tokens = 0.3, 0.05, (1.7, 0.4), (11, 4)
    optimum = [(reward - penalty * length) / beta for reward, length in zip(rewards, tokens, strict=True)]
    h = losses.log_ratio_margin(*(tensor([value]) for value in (optimum[0] - 9, optimum[1] - 2, -9.0, -2.0)))
    shift = losses.length_margin(*(torch.tensor([length]) for length in tokens), beta, penalty)
    assert float(beta * (h + shift)) == pytest.approx(rewards[0] - rewards[1], rel=1e-6)


def test_score_penalties_are_the_formulas():
    assert losses.centering(tensor([1.0, -2.0]), tensor([3.0, 2.0])).tolist() == [16.0, 0.0]
    assert losses.score_l2(tensor([1.0, -2.0]), tensor([3.0, 2.0])).tolist() == [5.0, 4.0]
    assert float(losses.positive_reward(tensor(0.7))) == pytest.approx(-log_sigmoid(0.7), rel=1e-12)


def test_extreme_rewards_stay_finite_in_float32():
    found = losses.preference_loss(torch.tensor([1e4, -1e4]), torch.tensor([-1e4, 1e4]))
    assert torch.isfinite(found).all()
