"""The KL coefficient against its formula."""

import pytest

from grmlight.policy.online.controllers import KlController, KlOptions


def test_a_fixed_coefficient_stays():
    controller = KlController(KlOptions(coefficient=0.3))
    controller.update(100.0)
    assert controller.coefficient == 0.3


@pytest.mark.parametrize(("kl", "error"), [(6.6, 0.1), (60.0, 0.2), (0.0, -0.2), (-3.0, -0.2), (5.4, -0.1)])
def test_steering_follows_the_formula(kl, error):
    controller = KlController(KlOptions(coefficient=0.2, target=6.0, rate=0.5))
    controller.update(kl)
    assert controller.coefficient == pytest.approx(0.2 * (1 + 0.5 * error))


def test_a_kl_that_is_not_finite_moves_nothing():
    controller = KlController(KlOptions(coefficient=0.2, target=6.0))
    controller.update(float("nan"))
    assert controller.coefficient == 0.2


def test_a_steered_coefficient_survives_a_checkpoint():
    options = KlOptions(coefficient=0.2, target=6.0)
    before, after = KlController(options), KlController(options)
    before.update(60.0)
    after.load_state_dict(before.state_dict())
    assert after.coefficient == before.coefficient != 0.2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"where": "loss", "estimator": "k1"}, "estimator"),
        ({"where": "prompt"}, "where"),
        ({"coefficient": float("inf")}, "coefficient"),
        ({"target": 0.0}, "target"),
        ({"limit": -1.0}, "limit"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        KlOptions(**options)
