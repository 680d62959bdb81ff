"""Win, tie and loss of pairs that a judge was asked about in both orders, with intervals over prompts.

Notable decisions:

- A pair is won if both replies name its answer; if they name different answers, that is a tie.
- Intervals draw whole prompts (`grmlight.evaluation.clustered`), as answers to one prompt are not independent.
- At matched length means two things, as judges like long answers: the same shares over the pairs whose lengths are
  alike, and the win rate that a logistic regression predicts at equal length. Source of the latter: length-controlled
  AlpacaEval (Dubois et al. 2024, arXiv 2404.04475), without its terms for instructions.

Shape suffixes: N pairs, P prompts, K sums, B draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grmlight.evaluation.clustered import Interval, percentile_interval, resampled_sums
from grmlight.policy.winrate.judges import Reply

Array = np.ndarray

RIDGE = 0.01
"""Of the regression's squared coefficients, halved, beside a sum over pairs: finite where one side always wins."""

_STEPS, _LONGEST_STEP = 60, 2.0
_AT_ONCE = 2_000_000


class Judged(NamedTuple):
    """A pair and what was said of it.

    Attributes:
        prompt: its prompt's number.
        forward: the reply with this policy's answer shown first.
        backward: with the other's shown first.
        length, other: of this policy's answer and the other's, characters.
        asked: whether the judge was asked; equal answers are a tie without.
    """

    prompt: int
    forward: Reply
    backward: Reply
    length: int
    other: int
    asked: bool = True

    @property
    def outcome(self) -> float:
        """1 for a win, 0 for a loss, one half for a tie."""
        return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((self.forward or "", self.backward or ""), 0.5)

    @property
    def read(self) -> bool:
        """Whether both replies are there."""
        return self.forward is not None and self.backward is not None


@dataclasses.dataclass(frozen=True)
class Shares:
    """Of some pairs.

    Attributes:
        win, tie, loss: shares; the three add up to 1.
        rate: win + tie / 2.
        pairs, prompts: how many.
    """

    win: Interval
    tie: Interval
    loss: Interval
    rate: Interval
    pairs: int
    prompts: int


@dataclasses.dataclass(frozen=True)
class Position:
    """How much the judge goes by the order.

    Attributes:
        first: share of the replies that name an answer which name the one shown first; 0.5 without bias.
        agreed: share of the pairs asked about whose two replies say the same.
        both_first: pairs of which the answer shown first was named both times.
        both_second: likewise the second.
    """

    first: Interval
    agreed: Interval
    both_first: int
    both_second: int


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of one policy against another.

    Attributes:
        raw: over all pairs with a verdict.
        matched: over those whose lengths are alike.
        controlled: the win rate at equal length, by regression.
        position: of the judge.
        unread: pairs without a verdict, in none of the figures.
        identical: pairs of equal answers, which are ties.
        length, other: mean lengths of both sides, characters.
    """

    raw: Shares
    matched: Shares
    controlled: Interval
    position: Position
    unread: int
    identical: int
    length: float
    other: float


def figures(judged: Sequence[Judged], ratio: float, draws: int, seed: int = 0) -> Figures:
    """All figures.

    Args:
        judged: the pairs.
        ratio: lengths are alike if the longer one is at most so many times the shorter one.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    read = [each for each in judged if each.read]
    alike = [each for each in read if max(each.length, each.other) <= ratio * min(each.length, each.other)]
    lengths = np.array([(each.length, each.other) for each in judged], dtype=float).reshape(-1, 2)
    means = lengths.mean(0) if len(judged) else np.full(2, np.nan)
    return Figures(
        raw=shares(read, draws, seed),
        matched=shares(alike, draws, seed),
        controlled=controlled(read, draws, seed),
        position=position(read, draws, seed),
        unread=len(judged) - len(read),
        identical=sum(not each.asked for each in judged),
        length=float(means[0]),
        other=float(means[1]),
    )


def shares(judged: Sequence[Judged], draws: int, seed: int) -> Shares:
    """Win, tie and loss of pairs with a verdict."""
    outcome_N = np.array([each.outcome for each in judged])
    table_PK = _by_prompt(judged, np.stack([outcome_N == 1, outcome_N == 0.5, outcome_N == 0, outcome_N], axis=1))
    drawn_BK = resampled_sums(table_PK, draws, seed)
    win, tie, loss, rate = (_ratio(table_PK, drawn_BK, column, 0) for column in (1, 2, 3, 4))
    return Shares(win, tie, loss, rate, len(judged), len(table_PK))


def position(judged: Sequence[Judged], draws: int, seed: int) -> Position:
    """How often the first place won."""
    asked = [each for each in judged if each.asked]
    named_first = [(each.forward == "A") + (each.backward == "A") for each in asked]
    named = [(each.forward != "=") + (each.backward != "=") for each in asked]
    agreed = [(each.forward, each.backward) in (("A", "B"), ("B", "A"), ("=", "=")) for each in asked]
    table_PK = _by_prompt(asked, np.stack([named_first, named, agreed], axis=1) if asked else np.zeros((0, 3)))
    drawn_BK = resampled_sums(table_PK, draws, seed)
    both = [(each.forward, each.backward) for each in asked]
    return Position(
        first=_ratio(table_PK, drawn_BK, 1, 2),
        agreed=_ratio(table_PK, drawn_BK, 3, 0),
        both_first=both.count(("A", "A")),
        both_second=both.count(("B", "B")),
    )


def controlled(judged: Sequence[Judged], draws: int, seed: int) -> Interval:
    """The win rate at equal length: sigmoid(theta) of the logistic regression of the outcome on the length.

    The outcome (1, 0, or one half) has the probability sigmoid(theta + phi * tanh(gap / s)), with the gap of lengths in
    characters and s its standard deviation over the pairs.
    """
    if not judged:
        return Interval(np.nan, np.nan, np.nan, 0)
    outcome_N = np.array([each.outcome for each in judged])
    gap_N = np.array([each.length - each.other for each in judged], dtype=float)
    scale = gap_N.std()
    input_N = np.tanh(gap_N / scale) if scale > 0 else np.zeros(len(gap_N))
    _, number_N = np.unique([each.prompt for each in judged], return_inverse=True)
    prompts = int(number_N.max()) + 1
    value = _at_equal_length(outcome_N, input_N, np.ones((1, len(judged))))[0]
    if prompts < 2:
        return Interval(float(value), np.nan, np.nan, len(judged))
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, draws, step := max(1, _AT_ONCE // max(len(judged), prompts))):
        drawn_BP = generator.integers(prompts, size=(min(step, draws - start), prompts))
        times_BP = np.stack([np.bincount(each, minlength=prompts) for each in drawn_BP])
        found.append(_at_equal_length(outcome_N, input_N, times_BP[:, number_N].astype(float)))
    return Interval(float(value), *percentile_interval(np.concatenate(found)), len(judged))


def _at_equal_length(outcome_N: Array, input_N: Array, weight_BN: Array) -> Array:
    """sigmoid(theta) of each draw's weighted, barely penalized regression, by Newton's method."""
    theta_B, phi_B = np.zeros(len(weight_BN)), np.zeros(len(weight_BN))
    for _ in range(_STEPS):
        chance_BN = _sigmoid(theta_B[:, None] + phi_B[:, None] * input_N)
        error_BN, curve_BN = weight_BN * (outcome_N - chance_BN), weight_BN * chance_BN * (1 - chance_BN)
        slope_theta, slope_phi = error_BN.sum(1) - RIDGE * theta_B, error_BN @ input_N - RIDGE * phi_B
        a, b, c = curve_BN.sum(1) + RIDGE, curve_BN @ input_N, curve_BN @ input_N**2 + RIDGE
        determinant = a * c - b * b
        steps = (c * slope_theta - b * slope_phi) / determinant, (a * slope_phi - b * slope_theta) / determinant
        theta_step, phi_step = (np.clip(each, -_LONGEST_STEP, _LONGEST_STEP) for each in steps)
        theta_B, phi_B = theta_B + theta_step, phi_B + phi_step
        if max(np.abs(theta_step).max(), np.abs(phi_step).max()) < 1e-10:
            break
    return _sigmoid(theta_B)


def _sigmoid(value: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * value))


def _by_prompt(judged: Sequence[Judged], columns_NK: Array) -> Array:
    """For each prompt the number of its pairs, and the sums of their columns."""
    if not judged:
        return np.zeros((0, 1 + columns_NK.shape[1]))
    _, number_N = np.unique([each.prompt for each in judged], return_inverse=True)
    table_PK = np.zeros((int(number_N.max()) + 1, 1 + columns_NK.shape[1]))
    np.add.at(table_PK, number_N, np.column_stack([np.ones(len(judged)), columns_NK]))
    return table_PK


def _ratio(table_PK: Array, drawn_BK: Array, part: int, whole: int) -> Interval:
    sums_K = table_PK.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        value, values_B = sums_K[part] / sums_K[whole], drawn_BK[:, part] / drawn_BK[:, whole]
    low, high = percentile_interval(values_B) if len(table_PK) > 1 else (np.nan, np.nan)
    return Interval(float(value), low, high, round(sums_K[whole]))
