"""The estimator is the mean over all subsets, in so many words."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from grmlight.policy.best_of_n.estimator import best_of_n, bootstrap_means, kl_of_n, ordered, sizes_up_to, weights


def over_subsets(proxy, value, n):
    """Of every subset the mean value of its best answers; of these the mean."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[index] for index in subset)
        best = [value[index] for index in subset if proxy[index] == top]
        found.append(sum(best) / len(best))
    return sum(found) / len(found)


def one_prompt(proxy, value, sizes):
    return best_of_n([np.array(proxy)], [np.stack([value, proxy], axis=1)], np.array(sizes))[0]


@pytest.mark.parametrize("levels", [None, 5, 2, 1], ids=["no ties", "ties", "two values", "one value"])
def test_every_n_is_the_mean_over_all_subsets(levels):
    draw = np.random.default_rng(0)
    proxy = draw.normal(size=12) if levels is None else draw.integers(levels, size=12).astype(float)
    gold = draw.normal(size=12)
    found = one_prompt(proxy, gold, range(1, 13))
    for n in range(1, 13):
        assert abs(found[n - 1, 0] - over_subsets(proxy, gold, n)) < 1e-12
        assert abs(found[n - 1, 1] - over_subsets(proxy, proxy, n)) < 1e-12


def test_prompts_of_different_numbers_of_answers_do_not_touch_each_other():
    draw = np.random.default_rng(1)
    counts, sizes = (7, 3, 12, 7, 1, 0), np.array([1, 2, 3, 6, 12])
    proxies = [draw.normal(size=count) for count in counts]
    values = [draw.normal(size=(count, 2)) for count in counts]
    found = best_of_n(proxies, values, sizes)
    assert found.shape == (6, 5, 2)
    for prompt, count in enumerate(counts):
        for place, n in enumerate(sizes):
            if n > count:
                assert np.isnan(found[prompt, place]).all()
            else:
                expected = [over_subsets(proxies[prompt], values[prompt][:, column], n) for column in range(2)]
                assert np.abs(found[prompt, place] - expected).max() < 1e-12


@pytest.mark.parametrize(("answers", "n"), [(600, 1), (600, 512), (10_000, 7), (10_000, 5000), (10_000, 10_000)])
def test_weights_are_those_of_exact_binomials(answers, n):
    (found,) = weights(answers, np.array([n]))
    assert abs(found.sum() - 1) < 1e-12
    total = math.comb(answers, n)
    for place in {n, answers, (n + answers) // 2, max(n, answers - 3)}:
        exact = float(Fraction(math.comb(place - 1, n - 1), total))
        assert found[place - 1] == pytest.approx(exact, rel=1e-12, abs=1e-300)
    assert not found[: n - 1].any()


def test_parts_of_many_sizes_give_what_one_gives(monkeypatch):
    draw = np.random.default_rng(2)
    proxies, sizes = [draw.normal(size=50) for _ in range(3)], np.arange(1, 51)
    values = [draw.normal(size=(50, 2)) for _ in range(3)]
    whole = best_of_n(proxies, values, sizes)
    monkeypatch.setattr("grmlight.policy.best_of_n.estimator._AT_ONCE", 120)
    np.testing.assert_allclose(best_of_n(proxies, values, sizes), whole, rtol=1e-13)


def test_the_proxy_never_falls_with_n():
    draw = np.random.default_rng(3)
    found = one_prompt(draw.normal(size=300), draw.normal(size=300), range(1, 301))
    assert (np.diff(found[:, 1]) > -1e-12).all()


def test_ties_share_their_mean():
    found = ordered(np.array([2.0, 1.0, 2.0, 0.0]), np.array([[4.0], [1.0], [6.0], [9.0]]))
    assert found[:, 0].tolist() == [9.0, 1.0, 5.0, 5.0]


def test_kl_is_that_of_the_papers():
    found = kl_of_n(np.array([1, 4, 16, 64, 256, 1000, 12500, 60000]))
    assert np.round(found, 2).tolist() == [0.0, 0.64, 1.84, 3.17, 4.55, 5.91, 8.43, 10.0]


def test_sizes_have_both_ends_and_all_powers_of_two():
    for most in (1, 2, 3, 600, 10_000):
        found = sizes_up_to(most).tolist()
        assert found == sorted(set(found))
        assert (found[0], found[-1]) == (1, most)
        assert {2**power for power in range(14) if 2**power <= most} <= set(found)
    assert len(found) < 60


def test_the_bootstrap_draws_prompts():
    draw = np.random.default_rng(4)
    values = draw.normal(size=(40, 3)) * [1.0, 10.0, 0.0] + 5
    found = bootstrap_means(values, 4000, seed=1)
    np.testing.assert_allclose(found.mean(0), values.mean(0), rtol=0.02)
    np.testing.assert_allclose(found.std(0)[:2], values.std(0)[:2] / np.sqrt(40), rtol=0.05)
    assert (found == bootstrap_means(values, 4000, seed=1)).all()
    assert found.std(0)[2] < 1e-12
