"""Two-armed bandits: every multiplier drives its reward to its threshold, from both sides, and lets go when it may."""

import json
import logging
import math

import pytest

from grmlight.policy.constraints.constraints import Constraints
from grmlight.policy.constraints.multiplier import Descent
from grmlight.policy.constraints.saturation import Patience

from .bandit import Bandit

ARMS = {"good": [0.0, 1.0]}
SIDES = {"from below": (3.0, 0.0), "from above": (0.0, 3.0)}


@pytest.mark.parametrize("start", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.8])
def test_xi_drives_the_reward_to_its_threshold_from_both_sides(start, threshold):
    """The reference is worth 0.5, so the threshold lies on either side of it too."""
    bandit = Bandit(ARMS, Constraints({"good": threshold}, "xi"), policy=start).run(1000)
    assert bandit.values()["good"] == pytest.approx(threshold, abs=1e-3)
    # At the optimum s / (1 - |s|) is the log-odds that the reward must add.
    squashed = bandit.mixer.multipliers["good"].squashed
    assert squashed / (1 - abs(squashed)) == pytest.approx(math.log(threshold / (1 - threshold)), abs=0.02)


@pytest.mark.parametrize("start", SIDES.values(), ids=SIDES)
def test_mu_drives_the_reward_to_its_threshold_where_the_reference_is_below(start):
    bandit = Bandit(ARMS, Constraints({"good": 0.8}, "mu"), policy=start).run(1000)
    assert bandit.values()["good"] == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("start", SIDES.values(), ids=SIDES)
def test_mu_lets_go_where_the_reference_meets_the_threshold(start):
    """The threshold is 0.3 and the reference worth 0.5: nothing remains but the reference."""
    bandit = Bandit(ARMS, Constraints({"good": 0.3}, "mu"), policy=start).run(6000)
    assert bandit.mixer.multipliers["good"].squashed < 0.02
    assert bandit.values()["good"] == pytest.approx(0.5, abs=0.01)


def test_a_multiplier_releases_once_its_constraint_is_satisfied():
    """Violated at first, it grows; the reference then moves above the threshold, and it shrinks again."""
    bandit = Bandit(ARMS, Constraints({"good": 0.8}, "mu")).run(1000)
    held = bandit.mixer.multipliers["good"].squashed
    assert held > 0.55
    bandit.reference = bandit.reference.new_tensor([0.0, 3.0])
    bandit.run(6000)
    assert bandit.mixer.multipliers["good"].squashed < 0.05
    assert bandit.values()["good"] == pytest.approx(1 / (1 + math.exp(-3)), abs=0.01)


@pytest.mark.parametrize("start", SIDES.values(), ids=SIDES)
def test_all_holds_the_reward_at_its_upper_bound(start):
    """It wants all it can get, with a KL at a small coefficient, and gets the bound."""
    bandit = Bandit(ARMS, Constraints({"good": 0.7}, "all"), policy=start, kl_coefficient=0.2).run(2500)
    assert bandit.values()["good"] == pytest.approx(0.7, abs=2e-3)


def test_all_without_a_kl_circles_around_its_bound():
    """What the paper calls oscillation: a linear game has no friction. The mean over time is the bound."""
    bandit = Bandit(ARMS, Constraints({"good": 0.7}, "all"), lr=0.1).run(6000)
    assert bandit.mean("good", 4000) == pytest.approx(0.7, abs=0.02)


def test_all_lets_go_of_a_bound_that_is_never_reached():
    """With the KL that strong the reward stays below: the bound takes no part."""
    bandit = Bandit(ARMS, Constraints({"good": 0.95}, "all"), kl_coefficient=2.0).run(3000)
    assert bandit.mixer.multipliers["good"].squashed < 0.02
    # exp(r / beta) tilts the reference.
    assert bandit.values()["good"] == pytest.approx(1 / (1 + math.exp(-1 / 2)), abs=0.01)


def test_all_weighs_its_rewards():
    """Of two rewards on two arms, the one with the larger alpha wins, below both bounds."""
    rewards = {"left": [1.0, 0.0], "right": [0.0, 1.0]}
    for favored in rewards:
        mixer = Constraints(dict.fromkeys(rewards, 0.8), "all", weights={favored: 2.0})
        bandit = Bandit(rewards, mixer, kl_coefficient=0.2).run(3000)
        assert bandit.values()[favored] == pytest.approx(0.8, abs=5e-3)


@pytest.mark.parametrize("start", SIDES.values(), ids=SIDES)
def test_sat_takes_the_arm_whose_answer_is_nearest(start):
    """Its target is each answer's, not the mean's: of 0 and 1 the nearer one to 0.3 is 0."""
    for threshold, wanted in ((0.3, 0.0), (0.7, 1.0)):
        bandit = Bandit(ARMS, Constraints({"good": threshold}, "sat"), policy=start, lr=5.0).run(600)
        assert bandit.values()["good"] == pytest.approx(wanted, abs=0.01)
        assert not bandit.mixer.multipliers


def test_sat_stops_at_its_target_where_there_is_an_arm():
    bandit = Bandit({"good": [0.0, 0.5, 1.0]}, Constraints({"good": 0.5}, "sat"), reference=(0.0,) * 3, lr=5.0).run(600)
    assert bandit.policy[1] > 0.99


def test_sat_weighs_its_rewards():
    rewards = {"left": [1.0, 0.0], "right": [0.0, 1.0]}
    for favored in rewards:
        mixer = Constraints(dict.fromkeys(rewards, 1.0), "sat", weights={favored: 3.0})
        assert Bandit(rewards, mixer, lr=5.0).run(400).values()[favored] > 0.98


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["b", "a"], ["a", "b", "c"], ["d", "c", "b", "a", "e"]])
def test_any_number_of_rewards_in_any_order(names):
    """The official code is hard-wired to two or three named rewards, and takes their thresholds by place.

    Beside N - 1 constraints at rest one pulls at most by its reward / (N - 1) nats: so the units are large.
    """
    arms = {name: [8.0 * (place == row) for place in range(6)] for row, name in enumerate("abcde")}
    targets = {name: 8 * 0.05 * (place + 1) for place, name in enumerate("abcde")}
    mixer = Constraints({name: targets[name] for name in names}, "xi")
    rewards = {name: arms[name] for name in reversed(names)}
    bandit = Bandit(rewards, mixer, reference=(0.0,) * 6, lr=0.1).run(2000)
    assert bandit.values() == pytest.approx({name: targets[name] for name in names}, abs=1e-2)


UNREACHABLE = [("mu", 1.4), ("xi", 1.4), ("xi", -0.4), ("all", -0.4)]


@pytest.mark.parametrize(("variant", "threshold"), UNREACHABLE)
def test_a_threshold_out_of_reach_saturates_and_is_warned_of_by_name(variant, threshold, caplog):
    descent, patience = Descent(lr=0.5), Patience(0.9, 40)
    mixer = Constraints({"good": threshold, "fine": 0.5}, variant, multipliers=descent, patience=patience)
    rewards = {"good": [0.0, 1.0], "fine": [0.5, 0.5]}
    with caplog.at_level(logging.WARNING):
        bandit = Bandit(rewards, mixer).run(1500)
    assert abs(bandit.mixer.multipliers["good"].squashed) > 0.9
    warnings = [record.getMessage() for record in caplog.records]
    assert 1 <= len(warnings) <= 2
    assert all("the multiplier of reward 'good' is saturated" in warning for warning in warnings)
    assert "its threshold seems out of reach" in warnings[-1]
    assert f"its threshold {threshold:g};" in warnings[-1]


@pytest.mark.parametrize(("variant", "threshold"), [("mu", 0.9), ("xi", 0.9), ("xi", 0.1), ("all", 0.1)])
def test_a_threshold_that_is_never_met_is_warned_of_by_name_while_there_is_room(variant, threshold, caplog):
    """The violation is small and the multiplier slow, so it is nowhere near saturation; the other is met."""
    descent, patience = Descent(lr=0.001), Patience(0.98, 12)
    mixer = Constraints({"good": threshold, "fine": 0.5}, variant, multipliers=descent, patience=patience)
    bandit = Bandit({"good": [0.0, 1.0], "fine": [0.5, 0.5]}, mixer, lr=0.01)
    with caplog.at_level(logging.WARNING):
        bandit.run(11)
        assert not caplog.records
        bandit.run(29)
    assert abs(bandit.mixer.multipliers["good"].squashed) < 0.9
    [warning] = [record.getMessage() for record in caplog.records]
    assert "the threshold of reward 'good' was never met, and in the last 12 updates" in warning


@pytest.mark.parametrize(("variant", "met"), [("mu", 1.01), ("xi", 1.01), ("xi", 1.0), ("all", 0.99)])
def test_a_threshold_that_was_met_once_is_not_called_never_met(variant, met, caplog):
    mixer = Constraints({"a": 1.0}, variant, patience=Patience(0.98, 12))
    missed = {"a": 2.0 if variant == "all" else 0.0}
    for values in ([missed] * 6, [{"a": met}], [missed] * 11):
        for each in values:
            mixer.update(each)
    restored = Constraints({"a": 1.0}, variant, patience=Patience(0.98, 12))
    restored.load_state_dict(json.loads(json.dumps(mixer.state_dict())))
    with caplog.at_level(logging.WARNING):
        restored.update(missed)
    assert not caplog.records


@pytest.mark.parametrize(("noise", "step", "said"), [(0.1, 0.0, True), (0.9, 0.0, False), (0.1, 0.05, False)])
def test_a_miss_must_exceed_its_noise_and_not_shrink(noise, step, said, caplog):
    """Each number is below the threshold 0; their mean is known only as well as they differ from each other."""
    mixer = Constraints({"a": 0.0}, "mu", patience=Patience(0.98, 4))
    misses = [-0.2 if turn % 4 else -0.2 - 10 * noise for turn in range(4)] if noise > 0.5 else None
    with caplog.at_level(logging.WARNING):
        for turn in range(4):
            mixer.update({"a": misses[turn] if misses else -0.6 + noise * (-1) ** turn + step * turn})
    assert ("'a' was never met" in caplog.text) == said


def test_a_threshold_that_the_paper_s_formula_cannot_hold_is_held():
    """The reference is worth 0.5, and 0.1 takes a pull of log 9: with a task that weighs 1 - s, at most 2, s / (1 - s)
    is never below -1/2, and the reward stays at sigmoid(-1/2) or above."""
    bandit = Bandit(ARMS, Constraints({"good": 0.1}, "xi")).run(3000)
    assert bandit.values()["good"] == pytest.approx(0.1, abs=1e-3)
    assert 1 / (1 + math.exp(1 / 2)) > 0.37


@pytest.mark.parametrize("variant", ["mu", "xi", "all"])
def test_thresholds_within_reach_are_not_warned_of(variant, caplog):
    with caplog.at_level(logging.WARNING):
        Bandit(ARMS, Constraints({"good": 0.7}, variant), kl_coefficient=0.2, policy=(2.0, 0.0)).run(1500)
    assert not caplog.records
