"""The surface and the density against plain loops, scipy, and functions that are known."""

import itertools
import math

import numpy as np
import pytest

from grmlight.policy.constraints.surface import density, fit_surface, supported


def points(count, rewards, seed=0):
    return np.random.default_rng(seed).uniform(-1, 3, (count, rewards))


def plain_fit(x, y, degree):
    """Least squares in the plain monomials; the value at each point."""
    powers = [p for p in itertools.product(range(degree + 1), repeat=x.shape[1]) if sum(p) <= degree]
    rows = np.array([[math.prod(v**k for v, k in zip(row, p, strict=True)) for p in powers] for row in x])
    return rows @ np.linalg.lstsq(rows, y)[0]


def folds_of(count, folds=5):
    return np.arange(count) % folds


@pytest.mark.parametrize("rewards", [1, 2, 3])
def test_a_polynomial_is_found_again(rewards):
    x = points(120, rewards)
    y = 1 + x[:, 0] ** 3 - 2 * x.prod(axis=1) + 0.3 * x.sum(axis=1) ** 2
    surface = fit_surface(x, y, folds_of(len(x)))
    assert surface.error < 1e-9
    assert surface.degree <= 10
    np.testing.assert_allclose(surface(x), y, atol=1e-9)
    elsewhere = points(30, rewards, seed=1)
    wanted = 1 + elsewhere[:, 0] ** 3 - 2 * elsewhere.prod(axis=1) + 0.3 * elsewhere.sum(axis=1) ** 2
    np.testing.assert_allclose(surface(elsewhere), wanted, atol=1e-6)


def test_it_is_the_least_squares_polynomial_of_its_degree():
    x = points(80, 2)
    y = np.sin(3 * x[:, 0]) + x[:, 1] + np.random.default_rng(2).normal(0, 0.1, 80)
    surface = fit_surface(x, y, folds_of(80))
    np.testing.assert_allclose(surface(x), plain_fit(x, y, surface.degree), atol=1e-6)


def test_noise_is_not_fitted():
    """With few noisy points degree 10 would fit them all; what is left out says that a plane is better."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (66 * 2 + 20, 2))
    y = x.sum(axis=1) + rng.normal(0, 0.3, len(x))
    surface = fit_surface(x, y, folds_of(len(x)))
    assert surface.degree <= 2
    held = rng.uniform(0, 1, (500, 2))
    assert np.abs(surface(held) - held.sum(axis=1)).max() < 0.3
    overfitted = plain_fit(np.concatenate([x, held[:1]]), np.append(y, 0), 10)
    assert np.abs(overfitted[:-1] - x.sum(axis=1)).max() > 0.3


def test_the_highest_degree_is_kept_to():
    x = points(200, 2)
    assert fit_surface(x, np.exp(x[:, 0] * x[:, 1] / 4), folds_of(200), highest_degree=2).degree <= 2
    # A fold leaves 9 of 12 points, so not more than 4 terms: degree 1 has 3 of them, degree 2 has 6.
    assert fit_surface(x[:12], x[:12, 0] ** 2, folds_of(12, 4)).degree == 1


def test_too_little_data_is_refused():
    x = points(4, 2)
    with pytest.raises(ValueError, match="too few"):
        fit_surface(x, x[:, 0], folds_of(4, 2))
    with pytest.raises(ValueError, match="every reward moves"):
        fit_surface(np.ones((20, 2)), np.ones(20), folds_of(20))
    with pytest.raises(ValueError, match="two folds"):
        fit_surface(points(20, 2), np.ones(20), np.zeros(20))


def plain_density(data, place):
    n, d = data.shape
    total = 0.0
    for row in data:
        term = 1.0
        for axis in range(d):
            width = np.std(data[:, axis], ddof=1) * n ** (-1 / (d + 4))
            term *= math.exp(-0.5 * ((place[axis] - row[axis]) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        total += term / n
    return total


def test_the_density_is_a_plain_loop_s():
    data, at = points(40, 2), points(15, 2, seed=3)
    np.testing.assert_allclose(density(data, at), [plain_density(data, row) for row in at], rtol=1e-12)


def test_the_density_is_scipy_s_for_one_reward():
    stats = pytest.importorskip("scipy.stats")
    data, at = points(50, 1), points(20, 1, seed=4)
    np.testing.assert_allclose(density(data, at), stats.gaussian_kde(data.T)(at.T), rtol=1e-10)


def test_support_does_not_depend_on_the_units_of_a_reward():
    data, at = points(60, 2), points(400, 2, seed=5) * 1.5
    scale = np.array([1000.0, 0.01])
    here = supported(data, at, 0.1)
    assert 0 < here.sum() < len(here)
    np.testing.assert_array_equal(here, supported(data * scale + 7, at * scale + 7, 0.1))
    assert supported(data, data, 0.1).mean() == pytest.approx(0.9, abs=0.02)
