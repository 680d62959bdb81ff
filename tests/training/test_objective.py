"""The objective against the GRM authors' definition on hand-made outputs, and its normalization."""

import math

import pytest
import torch

from grmlight.regularizers import DirectPreference, PositiveReward, RewardCentering, ScoreL2, TextGeneration
from grmlight.training.objective import Penalty, objective
from tests.batches import outputs_of, pair_batch

REWARDS = [0.4, -0.3, 1.1, 1.3, -2.0, 0.5]
LOGPS = [-12.0, -30.0, -45.0, -20.0, -3.0, -3.5]
REFERENCE = [-14.0, -25.0, -40.0, -22.0, -3.0, -4.0]


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def bradley_terry():
    return [-log_sigmoid(REWARDS[i] - REWARDS[i + 1]) for i in (0, 2, 4)]


def official(kind, alpha, beta=0.1):
    """The authors' total loss: (1 - alpha) mean L_R + alpha mean L_reg."""
    if kind == "sft":
        penalties = [-log_sigmoid(beta * LOGPS[i]) for i in (0, 2, 4)]
    else:
        reference = REFERENCE if kind == "dpo" else [0.0] * 6
        gaps = [LOGPS[i] - LOGPS[i + 1] - (reference[i] - reference[i + 1]) for i in (0, 2, 4)]
        penalties = [-log_sigmoid(beta * gap) for gap in gaps]
    return (1 - alpha) * sum(bradley_terry()) / 3 + alpha * sum(penalties) / 3


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("kind", ["sft", "dpo", "dpo_noref"])
def test_total_is_the_official_definition(kind, alpha):
    regularizer = TextGeneration(alpha) if kind == "sft" else DirectPreference(alpha, reference=kind == "dpo")
    batch, outputs = pair_batch(3), outputs_of(REWARDS, LOGPS, REFERENCE)
    values_G = regularizer.penalty(outputs, batch)
    preference_G = torch.tensor(bradley_terry(), dtype=torch.float64)
    found = objective(preference_G, {"reg": Penalty(values_G, alpha, convex=True)}, batch)
    assert float(found.loss) == pytest.approx(official(kind, alpha), rel=1e-12)


def test_weights_multiply_every_term_and_not_the_divisor():
    batch = pair_batch(3, weights=[2.0, 0.0, 0.5])
    values_G = torch.tensor([1.0, 10.0, 4.0])
    found = objective(values_G * batch.weight_C, {"x": Penalty(values_G, 0.1, convex=False)}, batch)
    assert float(found.terms["x"]) == pytest.approx((2 + 2) / 3)
    assert float(found.loss) == pytest.approx((2 + 2) / 3 * 1.1)


def test_packs_of_unequal_size_add_up_to_the_step():
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    whole = objective(values, {}, pair_batch(4)).loss
    parts = [
        objective(values[:3], {}, pair_batch(3, groups_in_step=4)).loss,
        objective(values[3:], {}, pair_batch(1, groups_in_step=4)).loss,
    ]
    torch.testing.assert_close(sum(parts), whole)
    mean_of_means = (values[:3].mean() + values[3:].mean()) / 2
    assert abs(float(mean_of_means - whole)) > 1


def test_a_group_with_count_zero_enters_no_term():
    batch = pair_batch(2, counts=[1.0, 0.0], groups_in_step=1)
    found = objective(torch.tensor([1.0, 99.0]), {"x": Penalty(torch.tensor([2.0, 99.0]), 1.0, convex=False)}, batch)
    assert float(found.loss) == 3.0


def test_convex_weights_above_one_are_named():
    penalty = Penalty(torch.ones(1), 0.6, convex=True)
    with pytest.raises(ValueError, match=r"a.*0\.6.*b.*0\.6"):
        objective(torch.ones(1), {"a": penalty, "b": penalty}, pair_batch(1))


def test_score_penalties():
    batch, outputs = pair_batch(2, counts=[1.0, 0.0]), outputs_of([1.0, 2.0, 50.0, 60.0])
    assert RewardCentering().penalty(outputs, batch)[0] == 9.0
    assert ScoreL2().penalty(outputs, batch)[0] == 2.5
    assert float(PositiveReward().penalty(outputs, batch)) == pytest.approx(-log_sigmoid(1.0))


def test_text_generation_forms():
    batch, outputs = pair_batch(1, scored=[4, 2]), outputs_of([0.0, 0.0], [-6.0, -9.0])
    assert float(TextGeneration(form="nll").penalty(outputs, batch)) == 6.0
    assert float(TextGeneration(form="token_mean").penalty(outputs, batch)) == 1.5
