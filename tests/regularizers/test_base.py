"""What every regularizer promises: weights, ramps, state and names."""

import math

import pytest

from grmlight.regularizers import Ramp, ScoreL2, TextGeneration


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_bad_weight_is_named(weight):
    with pytest.raises(ValueError, match="text_generation: weight"):
        TextGeneration(weight)


def test_a_ramp_goes_in_a_straight_line_and_stays():
    regularizer = TextGeneration(Ramp(0.2, 0.0, steps=4))
    assert [regularizer.weight_at(step) for step in (0, 1, 4, 9)] == pytest.approx([0.2, 0.15, 0.0, 0.0])
    assert regularizer.active


def test_weight_zero_is_inactive():
    assert not TextGeneration(0.0).active


def test_state_keys_differ_by_name_and_not_by_weight():
    assert ScoreL2(name="a").state_key != ScoreL2(name="b").state_key
    assert ScoreL2(0.1).state_key == ScoreL2(0.2).state_key


def test_a_weight_changed_during_a_run_is_kept_in_the_state():
    before, after = ScoreL2(0.1), ScoreL2(0.1)
    before.weight = 0.4
    after.load_state_dict(before.state_dict())
    assert after.weight == 0.4
    ramped = ScoreL2(Ramp(0.0, 1.0, 10))
    ramped.load_state_dict(before.state_dict())
    assert isinstance(ramped.weight, Ramp)


def test_a_weight_configured_anew_wins_over_the_checkpoint():
    before, after = ScoreL2(0.01), ScoreL2(0.5)
    after.load_state_dict(before.state_dict())
    assert after.weight == 0.5
