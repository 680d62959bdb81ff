"""What alignment minimizes, against the formulas in float64."""

import math

import pytest

from grmlight.policy.objectives import (
    ANCHORS,
    AlignmentObjective,
    Anchor,
    comparison_loss,
    implicit_rewards,
    nll,
)
from tests.batches import outputs_of, pair_batch
from tests.test_losses import log_sigmoid

LOGPS = [-12.0, -9.5, -30.0, -41.0, -3.0, -2.0]
REFERENCE = [-14.0, -9.0, -33.0, -36.5, -3.5, -2.5]
SCORED = [4, 3, 11, 16, 2, 1]
MARGINS = [2.5, 7.5, 0.0]
"""Log-ratios 2.0 - -0.5, 3.0 - -4.5, 0.5 - 0.5."""


def given(labels=None, logps=LOGPS):
    return outputs_of([0.0] * 6, logps, REFERENCE), pair_batch(3, labels=labels, scored=SCORED)


EXPECTED = {
    "dpo": lambda h, beta: -log_sigmoid(beta * h),
    "rpo": lambda h, beta: -log_sigmoid(beta * h),
    "slic": lambda h, beta: max(0.0, 1 - beta * h),
    "ipo": lambda h, beta: (h - 1 / (2 * beta)) ** 2,
    "ipo daa": lambda h, beta: beta**2 * (h - 1 / beta) ** 2,
}


def objective_of(name, **options):
    kind, _, scale = name.partition(" ")
    return AlignmentObjective(kind, **({"scale": scale} if scale else {}), **options)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("penalty", [0.0, 0.02])
def test_each_objective_is_its_formula(name, penalty):
    found = comparison_loss(objective_of(name, beta=0.3, length_penalty=penalty), *given())
    lengths = [1, -5, 1]
    expected = [EXPECTED[name](h + penalty / 0.3 * tokens, 0.3) for h, tokens in zip(MARGINS, lengths, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_soft_labels_mix_the_losses_of_both_sides(name):
    labels = [0.5, 0.9, 0.2]
    found = comparison_loss(objective_of(name, beta=0.3), *given(labels))
    loss = EXPECTED[name]
    expected = [p * loss(h, 0.3) + (1 - p) * loss(-h, 0.3) for h, p in zip(MARGINS, labels, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("form", "expected"), [("nll", [12, 30, 3]), ("token_mean", [3, 30 / 11, 1.5])])
def test_sft_is_the_likelihood_of_the_chosen(form, expected):
    objective = AlignmentObjective("sft", form=form)
    assert comparison_loss(objective, *given()).tolist() == pytest.approx(expected, rel=1e-9)
    assert implicit_rewards(objective, given()[0]).tolist() == LOGPS


def test_implicit_rewards_are_scaled_log_ratios():
    found = implicit_rewards(AlignmentObjective("slic", beta=0.5), given()[0])
    assert found.tolist() == [1.0, -0.25, 1.5, -2.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("anchor", "weight", "values"),
    [
        (None, 0.005 * 0.3, [12, 9.5, 30, 41, 3, 2]),
        ("paper", 0.005 * 0.3, [12, 9.5, 30, 41, 3, 2]),
        ("openrlhf", 0.2, [3, 9.5 / 3, 30 / 11, 41 / 16, 1.5, 2]),
        ("trl", 0.005, [3, 9.5 / 3, 30 / 11, 41 / 16, 1.5, 2]),
        (Anchor(eta=1, reduction="mean"), 0.3, [3, 9.5 / 3, 30 / 11, 41 / 16, 1.5, 2]),
    ],
    ids=["default", "paper", "openrlhf", "trl", "own"],
)
def test_the_anchor_follows_its_convention(anchor, weight, values):
    objective = AlignmentObjective("rpo", beta=0.3, anchor=anchor)
    assert objective.anchor_weight == pytest.approx(weight)
    assert objective.pull is not None
    outputs, batch = given()
    found = nll(outputs.logps_N, batch, objective.pull.reduction == "mean")
    assert found.tolist() == pytest.approx(values, rel=1e-9)


def test_rpo_without_weight_is_dpo():
    assert AlignmentObjective("rpo", anchor=Anchor(eta=0)).pull is None
    assert ANCHORS["paper"] == Anchor(0.005, "sum", True, "chosen")


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_rpo_s_gradient_is_dpo_s_with_a_pull(beta):
    """Liu et al.: beta sigmoid(-beta h) (grad w - grad l) + eta beta grad w, with respect to the log-probs, negated."""
    objective = AlignmentObjective("rpo", beta=beta, anchor=Anchor(eta=0.7))
    outputs, batch = given()
    outputs.logps_N.requires_grad_()
    anchored = nll(outputs.logps_N, batch, False)[batch.better_C] * objective.anchor_weight
    (comparison_loss(objective, outputs, batch) + anchored).sum().backward()
    expected = []
    for h in MARGINS:
        push = beta / (1 + math.exp(beta * h))
        expected += [-push - 0.7 * beta, push]
    assert outputs.logps_N.grad.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "orpo"}, "there is no 'orpo'; choose from sft, dpo, ipo, slic, rpo"),
        ({"beta": 0.0}, "beta must be finite and above 0, got 0.0"),
        ({"beta": -0.1}, "beta must be finite and above 0"),
        ({"beta": math.nan}, "beta must be finite and above 0"),
        ({"length_penalty": math.inf}, "length_penalty must be finite"),
        ({"kind": "ipo", "scale": "azar"}, "scale must be 'paper' or 'daa', got 'azar'"),
        ({"kind": "sft", "form": "mean"}, "form must be 'nll' or 'token_mean', got 'mean'"),
        ({"kind": "rpo", "anchor": "pang"}, "anchor must be one of paper, openrlhf, trl or its settings, got 'pang'"),
        ({"anchor": "paper"}, "'dpo' has no anchor"),
        ({"scale": "daa"}, "'dpo' has no scale"),
        ({"form": "token_mean"}, "'dpo' has no form"),
        ({"kind": "sft", "length_penalty": 0.1}, "'sft' has no length_penalty"),
    ],
)
def test_a_wrong_setting_is_named(options, said):
    with pytest.raises(ValueError, match=said) as caught:
        AlignmentObjective(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eta": -0.1}, "eta must be finite and at least 0, got -0.1"),
        ({"eta": math.nan}, "eta must be finite"),
        ({"reduction": "max"}, "reduction must be 'sum' or 'mean'"),
        ({"base": "rejected"}, "base must be 'chosen' or 'reference'"),
        ({"samples": 0}, "samples and max_new_tokens must be at least 1"),
    ],
)
def test_a_wrong_anchor_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        Anchor(**options)
