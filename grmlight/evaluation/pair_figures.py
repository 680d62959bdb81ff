"""Figures of rewards on pairs, from sums that add up over packs, steps and ranks.

Training and evaluation read the same figures from the same sums; `docs/metrics.md` has the formulas. Groups that only
fill an empty share (count 0) enter none of them, and comparison weights enter none: they scale losses alone.

Shape suffixes: C comparisons, N responses, B bins, S sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grmlight.data.batch import GroupBatch, sum_dtype
from grmlight.evaluation.disagreement import DISAGREEMENT
from grmlight.evaluation.log_ratios import LOG_RATIOS

BINS = 10
"""Bins of equal width for the probability of the side that the rewards prefer, which lies between 0.5 and 1."""

# Rows of the two tables whose products are summed, and so the places of those sums.
_ONE, _BETTER, _WORSE, _PREDICTED, _SIDE = range(5)
_ONES, _REWARD, _LENGTH = range(3)

SUMS = 5 * 5 + 3 * 3 + BINS

RIGHT, LABELED = 5 * _PREDICTED + _SIDE, 5 * _SIDE + _SIDE
"""Places of two sums over comparisons with a labeled side: how many more are right than wrong, and how many in all."""


FIGURES = (
    "accuracy",
    "margin",
    "chosen_reward",
    "chosen_reward_std",
    "rejected_reward",
    "rejected_reward_std",
    "ece",
    "length_correlation",
)
"""Names of the figures."""

NO_TERMS = frozenset(
    {
        *FIGURES,
        *DISAGREEMENT,
        *LOG_RATIOS,
        "rewards",
        "gradient_norm",
        "learning_rate",
        "sharing",
        "imbalance",
        "skipped",
    }
)
"""Names under `train/` that are no term of the loss."""


class PairValues(NamedTuple):
    """What the figures need of one pack, on its device.

    Attributes:
        better_C, worse_C: rewards of both sides.
        label_C: probability that `better` is better.
        count_C: 1, or 0 for a comparison of a repeated group.
        rewards_N: rewards of all responses.
        tokens_N: their scored tokens.
        count_N: 1, or 0 for a response of a repeated group.
    """

    better_C: Float[Tensor, " C"]
    worse_C: Float[Tensor, " C"]
    label_C: Float[Tensor, " C"]
    count_C: Float[Tensor, " C"]
    rewards_N: Float[Tensor, " N"]
    tokens_N: Float[Tensor, " N"]
    count_N: Float[Tensor, " N"]


def pair_values(rewards_N: Float[Tensor, " N"], batch: GroupBatch) -> PairValues:
    """Pick the values of a pack."""
    rewards_N = rewards_N.detach()
    return PairValues(
        better_C=rewards_N.index_select(0, batch.better_C),
        worse_C=rewards_N.index_select(0, batch.worse_C),
        label_C=batch.label_C,
        count_C=batch.count_G.index_select(0, batch.group_C),
        rewards_N=rewards_N,
        tokens_N=batch.sum_by_response(rewards_N.new_ones(()).expand(batch.response_L.shape[0])),
        count_N=batch.count_G.index_select(0, batch.group_N),
    )


def pair_sums(packs: Sequence[PairValues]) -> Float[Tensor, " S"]:
    """The sums over some packs, in float64 where the device has it. Nothing waits for the device."""
    dtype = sum_dtype(packs[0].rewards_N.device)
    values = PairValues(*(torch.cat(parts).to(dtype) for parts in zip(*packs, strict=True)))
    table = _table(values)
    return torch.cat(
        [
            ((table.pairs * values.count_C) @ table.pairs.T).flatten(),
            ((table.responses * values.count_N) @ table.responses.T).flatten(),
            table.gap_C.new_zeros(BINS).index_add(0, table.bin_C, table.gap_C),
        ]
    )


def group_sums(values: PairValues, batch: GroupBatch) -> Float[Tensor, "G S"]:
    """The same sums over each group of a pack alone."""
    values = PairValues(*(each.to(sum_dtype(each.device)) for each in values))
    table = _table(values)
    gaps_CB = table.gap_C.new_zeros(len(table.gap_C), BINS).scatter(1, table.bin_C[:, None], table.gap_C[:, None])
    pairs_CS = torch.cat([_products(table.pairs, values.count_C), gaps_CB], dim=1)
    responses_NS = _products(table.responses, values.count_N)
    zeros_GS = pairs_CS.new_zeros(batch.groups, SUMS)
    pairs_GS = zeros_GS[:, : pairs_CS.shape[1]].index_add(0, batch.group_C, pairs_CS)
    responses_GS = zeros_GS[:, : responses_NS.shape[1]].index_add(0, batch.group_N, responses_NS)
    return torch.cat([pairs_GS[:, :-BINS], responses_GS, pairs_GS[:, -BINS:]], dim=1)


class _Table(NamedTuple):
    """The rows whose products are summed, and what each comparison adds to which bin of the calibration."""

    pairs: Float[Tensor, "5 C"]
    responses: Float[Tensor, "3 N"]
    gap_C: Float[Tensor, " C"]
    bin_C: Int[Tensor, " C"]


def _products(rows: Float[Tensor, "K X"], count_X: Float[Tensor, " X"]) -> Float[Tensor, "X KK"]:
    return torch.einsum("ax,bx,x->xab", rows, rows, count_X).flatten(1)


def _table(values: PairValues) -> _Table:
    better_C, worse_C, label_C, count_C, rewards_N, tokens_N, _ = values
    difference_C, surplus_C = better_C - worse_C, label_C - 0.5
    predicted_C, side_C = difference_C.sign(), surplus_C.sign()
    # A tie has no sides: it enters the calibration alone.
    sides_2C = torch.stack([better_C, worse_C]).where(side_C >= 0, torch.stack([worse_C, better_C])) * side_C.abs()
    pairs = torch.stack([torch.ones_like(better_C), *sides_2C, predicted_C, side_C])
    responses = torch.stack([torch.ones_like(rewards_N), rewards_N, tokens_N])
    confidence_C = difference_C.abs().sigmoid()
    gap_C = (0.5 + predicted_C * surplus_C - confidence_C) * count_C
    return _Table(pairs, responses, gap_C, ((2 * confidence_C - 1) * BINS).long().clamp(0, BINS - 1))


def pair_figures(sums: Sequence[float]) -> dict[str, float]:
    """The figures by name; one that is not defined on these pairs is left out.

    Args:
        sums: S numbers, from `pair_sums`.
    """
    pairs = [sums[5 * row : 5 * row + 5] for row in range(5)]
    responses = [sums[25 + 3 * row : 28 + 3 * row] for row in range(3)]
    count, labeled = pairs[_ONE][_ONE], pairs[_SIDE][_SIDE]
    figures = {}
    if labeled:
        figures["accuracy"] = (pairs[_PREDICTED][_SIDE] / labeled + 1) / 2
        figures["margin"] = (pairs[_ONE][_BETTER] - pairs[_ONE][_WORSE]) / labeled
        for name, side in (("chosen", _BETTER), ("rejected", _WORSE)):
            mean = pairs[_ONE][side] / labeled
            figures[f"{name}_reward"] = mean
            figures[f"{name}_reward_std"] = math.sqrt(max(pairs[side][side] / labeled - mean * mean, 0.0))
    if count:
        figures["ece"] = sum(map(abs, sums[34:])) / count
    number = responses[_ONES][_ONES]
    squares = [number * responses[row][row] for row in (_REWARD, _LENGTH)]
    spread = [square - responses[_ONES][row] ** 2 for square, row in zip(squares, (_REWARD, _LENGTH), strict=True)]
    # Below this it is what rounding leaves of equal values.
    if all(each > 1e-13 * square for each, square in zip(spread, squares, strict=True)):
        shared = number * responses[_REWARD][_LENGTH] - responses[_ONES][_REWARD] * responses[_ONES][_LENGTH]
        figures["length_correlation"] = shared / math.sqrt(spread[0] * spread[1])
    return figures
