"""Curves of scores: differences to n = 1, intervals over prompts, aggregations as one would compute them by hand."""

import numpy as np
import pytest

from grmlight.policy.best_of_n.sweep import SweepOptions, curve, proxies_of, sweep
from tests.policy.best_of_n.test_estimator import over_subsets

DRAW = np.random.default_rng(0)
REWARDS = [DRAW.normal(size=(count, 3)) * [1.0, 20.0, 0.1] + [0.0, 5.0, -3.0] for count in (10, 8, 9, 8)]
GOLDS = [DRAW.normal(size=len(scores)) for scores in REWARDS]


def test_a_curve_is_the_mean_over_prompts_less_its_start():
    proxies = [scores[:, 0] for scores in REWARDS]
    points = curve("study", "m", 7, proxies, GOLDS, 8, SweepOptions())
    assert [point.n for point in points][-1] == 8
    assert {(p.study, p.method, p.seed, p.kl_estimator, p.step, p.beta) for p in points} == {
        ("study", "m", 7, "analytic", None, None)
    }
    assert (points[0].kl, points[0].proxy, points[0].gold) == (0.0, 0.0, 0.0)
    for point in points:
        for values, found in ((GOLDS, point.gold), (proxies, point.proxy)):
            gains = [
                over_subsets(proxy, value, point.n) - np.mean(value)
                for proxy, value in zip(proxies, values, strict=True)
            ]
            assert abs(found - np.mean(gains)) < 1e-12


def test_intervals_come_from_prompts():
    proxies = [DRAW.normal(size=50) for _ in range(64)]
    golds = [proxy * scale for proxy, scale in zip(proxies, DRAW.normal(1, 0.5, size=64), strict=True)]
    points = curve("s", "m", 0, proxies, golds, 50, SweepOptions())
    for point in points[1:]:
        assert point.low < point.gold < point.high
        assert (point.high - point.low) / point.standard_error == pytest.approx(3.92, rel=0.1)
    one = curve("s", "m", 0, proxies[:1], golds[:1], 50, SweepOptions())
    assert np.isnan([one[-1].low, one[-1].standard_error]).all()
    assert np.isfinite(one[-1].gold)
    assert curve("s", "m", 0, proxies, golds, 50, SweepOptions()) == points


def test_without_gold_there_is_a_proxy():
    points = curve("s", "m", 0, [scores[:, 0] for scores in REWARDS], None, 8, SweepOptions())
    assert np.isnan([point.gold for point in points]).all()
    assert points[-1].proxy > 0


def test_aggregations_by_hand():
    methods, constant = proxies_of(["a", "b", "c"], REWARDS, 0.5)
    assert constant == []
    assert list(methods) == ["a", "b", "c", "mean", "wco", "uwo"]
    whole = np.concatenate(REWARDS)
    for place, scores in enumerate(REWARDS):
        even = (scores - whole.mean(0)) / whole.std(0)
        np.testing.assert_allclose(methods["b"][place], scores[:, 1])
        np.testing.assert_allclose(methods["mean"][place], even.mean(1))
        np.testing.assert_allclose(methods["wco"][place], even.min(1))
        np.testing.assert_allclose(methods["uwo"][place], even.mean(1) - 0.5 * even.var(1))


def test_the_scale_of_a_member_does_not_count():
    scaled = [scores * [3.0, 0.01, 7.0] + [1.0, 2.0, 3.0] for scores in REWARDS]
    one, _ = proxies_of(["a", "b", "c"], REWARDS, 0.5)
    other, _ = proxies_of(["a", "b", "c"], scaled, 0.5)
    for name in ("mean", "wco", "uwo"):
        np.testing.assert_allclose(np.concatenate(one[name]), np.concatenate(other[name]), atol=1e-9)


def test_a_constant_reward_is_named_and_is_a_random_choice():
    rewards = [np.stack([scores[:, 0], np.full(len(scores), 4.0)], axis=1) for scores in REWARDS]
    methods, constant = proxies_of(["a", "b"], rewards, 0.5)
    assert constant == ["b"]
    points = sweep("s", 0, methods, GOLDS, SweepOptions())
    assert all(abs(point.gold) < 1e-12 for point in points if point.method == "b")
    means = [point.gold for point in points if point.method == "mean"]
    np.testing.assert_allclose(means, [point.gold for point in points if point.method == "a"], atol=1e-12)


def test_n_ends_at_the_fewest_answers_or_leaves_prompts_out():
    methods = {"a": [scores[:, 0] for scores in REWARDS]}
    assert max(point.n for point in sweep("s", 0, methods, GOLDS, SweepOptions())) == 8
    found = sweep("s", 0, methods, GOLDS, SweepOptions(max_n=9))
    two = curve("s", "a", 0, [methods["a"][0], methods["a"][2]], [GOLDS[0], GOLDS[2]], 9, SweepOptions())
    assert found == two
    with pytest.raises(ValueError, match="max_n is 11, and no prompt has more than 10 usable answers"):
        sweep("s", 0, methods, GOLDS, SweepOptions(max_n=11))
    with pytest.raises(ValueError, match="max_n must be at least 1"):
        SweepOptions(max_n=0)
