"""The sums behind a set's figures, row by row: 95% intervals of all of them from draws of whole prompts.

Rows of one prompt are not independent, so the bootstrap draws prompts (see `grmlight.evaluation.clustered`).

Shape suffixes: C comparisons, N responses, G groups, R rows, P prompts, B draws, S sums, K columns of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from grmlight.data.batch import GroupBatch, sum_dtype
from grmlight.evaluation.clustered import RESAMPLES, percentile_interval, resampled_sums
from grmlight.evaluation.pair_figures import LABELED, RIGHT, group_sums, pair_figures, pair_values

SEED = 0
"""Of the draws."""


class Bounds(NamedTuple):
    """A 95% interval; NaN where it is not defined."""

    low: float
    high: float


def row_sums(rewards_N: Float[Tensor, " N"], batch: GroupBatch) -> Float[Tensor, "G K"]:
    """For each group its row, the sums of its figures, and of its labeled comparisons how many more the longer wins.

    Groups that only fill an empty share have zeros behind their row. Nothing waits for the device.
    """
    values = pair_values(rewards_N, batch)
    dtype = sum_dtype(rewards_N.device)
    row_G = batch.row_C.new_zeros(batch.groups).scatter(0, batch.group_C, batch.row_C)
    longer_C = (values.tokens_N[batch.better_C] - values.tokens_N[batch.worse_C]).sign()
    ahead_C = longer_C * (values.label_C - 0.5).sign() * values.count_C
    ahead_G = torch.zeros(batch.groups, dtype=dtype, device=rewards_N.device).index_add(
        0, batch.group_C, ahead_C.to(dtype)
    )
    return torch.cat([row_G.to(dtype)[:, None], group_sums(values, batch), ahead_G[:, None]], dim=1)


def counts_of(sums_RK: Float[Tensor, "R K"]) -> Float[Tensor, "R 3"]:
    """For each row its number, how many of its comparisons are right, and how many have a labeled side."""
    row_R, sums_RS = sums_RK[:, 0], sums_RK[:, 1:-1]
    return torch.stack([row_R, (sums_RS[:, RIGHT] + sums_RS[:, LABELED]) / 2, sums_RS[:, LABELED]], dim=1)


def intervals(sums_RK: Float[Tensor, "R K"], prompts: Mapping[int, str]) -> dict[str, Bounds]:
    """The interval of each figure, and of `longer_wins`.

    Args:
        sums_RK: from `row_sums`, of all ranks.
        prompts: for each row a key that rows of one prompt share.
    """
    table_PK = _by_prompt(sums_RK, prompts)
    if len(table_PK) < 2:
        return {}
    drawn = [_figures(sums) for sums in resampled_sums(table_PK, RESAMPLES, SEED).tolist()]
    names = dict.fromkeys(name for figures in drawn for name in figures)
    return {
        name: Bounds(*percentile_interval(np.array([figures.get(name, math.nan) for figures in drawn])))
        for name in names
    }


def _by_prompt(sums_RK: Tensor, prompts: Mapping[int, str]) -> np.ndarray:
    """The sums of each prompt, in the order of rows, whatever the order in which ranks found them."""
    found: dict[str, np.ndarray] = {}
    table_RK = sums_RK.cpu().double().numpy()
    for row in table_RK[np.argsort(table_RK[:, 0], kind="stable")]:
        key = prompts[int(row[0])]
        found[key] = found.get(key, 0.0) + row[1:]
    return np.array(list(found.values()))


def _figures(sums: Sequence[float]) -> dict[str, float]:
    labeled = sums[LABELED]
    ruler = {"longer_wins": (sums[-1] / labeled + 1) / 2} if labeled else {}
    return pair_figures(sums[:-1]) | ruler
