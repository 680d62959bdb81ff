"""The evaluation as a smooth function of the rewards, and where there is data to believe it.

Shapes: P points, R rewards, T terms of a polynomial.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from jaxtyping import Bool, Float

Points = Float[np.ndarray, "P R"]
Values = Float[np.ndarray, " P"]


@dataclasses.dataclass(frozen=True)
class Surface:
    """A polynomial of total degree `degree` in the rewards, in Legendre's basis on the points' own box.

    Attributes:
        low, high: the box, R each.
        degree: the total degree.
        coefficients: T.
        error: root mean square error on points left out of the fit.
    """

    low: Float[np.ndarray, " R"]
    high: Float[np.ndarray, " R"]
    degree: int
    coefficients: Float[np.ndarray, " T"]
    error: float

    def __call__(self, rewards_PR: Points) -> Values:
        """The evaluation expected at rewards."""
        return _terms(self._scaled(rewards_PR), self.degree) @ self.coefficients

    def _scaled(self, rewards_PR: Points) -> Points:
        return 2 * (rewards_PR - self.low) / (self.high - self.low) - 1


def fit_surface(rewards_PR: Points, values_P: Values, folds_P: np.ndarray, highest_degree: int = 10) -> Surface:
    """The polynomial that predicts best what it was not fitted to, of degree 1 to `highest_degree`.

    The paper fits degree 10 to all points. With few of them such a surface rises without bound between them, so here 10
    is the highest degree tried: the points of one fold after the other are left out, the degree of the smallest error
    there is taken, and degrees with more terms than half of the points are not tried.

    Args:
        rewards_PR: where the evaluation was measured.
        values_P: the evaluation.
        folds_P: the fold of each point; points of one stretch of one run belong together, being nearly the same.
        highest_degree: the highest degree tried.

    Errors: ValueError if there are too few points, folds, or values of a reward.
    """
    low, high = rewards_PR.min(axis=0), rewards_PR.max(axis=0)
    folds = np.unique(folds_P)
    if len(folds) < 2 or not (low < high).all():
        raise ValueError("a surface needs points of two folds or more, in which every reward moves")
    errors: dict[int, float] = {}
    for degree in range(1, highest_degree + 1):
        terms_PT = _terms(2 * (rewards_PR - low) / (high - low) - 1, degree)
        if terms_PT.shape[1] > min((folds_P != fold).sum() for fold in folds) / 2:
            break
        residual_P = np.concatenate([_left_out(terms_PT, values_P, folds_P == fold) for fold in folds])
        errors[degree] = float(np.sqrt(np.mean(residual_P**2)))
    if not errors:
        raise ValueError(f"{len(values_P)} points are too few for a surface over {rewards_PR.shape[1]} rewards")
    degree = min(errors, key=errors.__getitem__)
    terms_PT = _terms(2 * (rewards_PR - low) / (high - low) - 1, degree)
    return Surface(low, high, degree, np.linalg.lstsq(terms_PT, values_P)[0], errors[degree])


def density(points_PR: Points, at_QR: Float[np.ndarray, "Q R"]) -> Float[np.ndarray, " Q"]:
    """Kernel density at places: Gaussian, each reward's width by Scott's rule."""
    count, size = points_PR.shape
    width_R = points_PR.std(axis=0, ddof=1) * count ** (-1 / (size + 4))
    found_Q = np.zeros(len(at_QR))
    for point_R in points_PR:
        found_Q += np.exp(-0.5 * (((at_QR - point_R) / width_R) ** 2).sum(axis=1))
    return found_Q / (count * np.prod(width_R) * (2 * np.pi) ** (size / 2))


def supported(points_PR: Points, at_QR: Float[np.ndarray, "Q R"], share: float) -> Bool[np.ndarray, " Q"]:
    """Whether places lie where there is data: as dense there as at all but the thinnest `share` of the points.

    The paper asks for a density of 50 a unit square, which depends on the units of the rewards; this does not.
    """
    return density(points_PR, at_QR) >= np.quantile(density(points_PR, points_PR), share)


def _left_out(terms_PT: np.ndarray, values_P: Values, out_P: np.ndarray) -> Values:
    fitted_T = np.linalg.lstsq(terms_PT[~out_P], values_P[~out_P])[0]
    return values_P[out_P] - terms_PT[out_P] @ fitted_T


def _terms(scaled_PR: Points, degree: int) -> Float[np.ndarray, "P T"]:
    basis_RPD = [np.polynomial.legendre.legvander(scaled_P, degree) for scaled_P in scaled_PR.T]
    powers = (each for each in itertools.product(range(degree + 1), repeat=len(basis_RPD)) if sum(each) <= degree)
    return np.stack(
        [np.prod([basis[:, k] for basis, k in zip(basis_RPD, each, strict=True)], axis=0) for each in powers], axis=1
    )
