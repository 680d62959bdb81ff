"""Curves of a score matrix: proxy and gold of the best of n, for every n and every way to make one proxy of rewards.

Shape suffixes: N answers of a prompt, R rewards, P prompts, S sizes (values of n), B draws of the bootstrap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import torch

from grmlight.evaluation.curves import CurvePoint
from grmlight.models.aggregation import Aggregation, aggregate
from grmlight.policy.best_of_n.estimator import best_of_n, bootstrap_means, kl_of_n, sizes_up_to

KL_ESTIMATOR = "analytic"

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """How curves are made of scores.

    Attributes:
        max_n: largest n, where it shall be less than the answers that there are. Prompts with fewer usable answers are
            left out then; without it the prompt with the fewest decides.
        variance_weight: lambda of the aggregation uwo.
        bootstrap_draws: draws of prompts behind the intervals.
        bootstrap_seed: their seed.
    """

    max_n: int | None = None
    variance_weight: float = 0.5
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0

    def __post_init__(self) -> None:
        if (self.max_n is not None and self.max_n < 1) or self.bootstrap_draws < 2:
            raise ValueError(
                f"max_n must be at least 1 and bootstrap_draws at least 2, got {self.max_n}, {self.bootstrap_draws}"
            )


def proxies_of(
    names: Sequence[str], rewards: Sequence[Array], variance_weight: float
) -> tuple[dict[str, list[Array]], list[str]]:
    """Everything that answers can be chosen by: each reward, and with several their aggregations.

    Args:
        names: of the rewards.
        rewards: for each prompt the rewards of its usable answers [N, R].
        variance_weight: lambda of uwo.

    Returns: for each method the proxies of each prompt [N], and the names of rewards that never vary. Before they are
    aggregated, rewards get mean 0 and standard deviation 1 over the whole pool: offsets and scales are arbitrary.
    """
    whole_MR = np.concatenate(rewards)
    constant = [name for place, name in enumerate(names) if np.ptp(whole_MR[:, place]) == 0]
    methods = {name: [scores_NR[:, place] for scores_NR in rewards] for place, name in enumerate(names)}
    if len(names) > 1:
        deviation_R = whole_MR.std(axis=0)
        even_MR = (whole_MR - whole_MR.mean(axis=0)) / np.where(deviation_R > 0, deviation_R, 1.0)
        ends = np.cumsum([len(scores_NR) for scores_NR in rewards])[:-1]
        for name in get_args(Aggregation):
            found_M = aggregate(torch.from_numpy(even_MR.T.copy()), name, variance_weight).numpy()
            methods[name] = np.split(found_M, ends)
    return methods, constant


def curve(
    study: str,
    method: str,
    seed: int,
    proxies: Sequence[Array],
    golds: Sequence[Array] | None,
    most: int,
    options: SweepOptions,
) -> list[CurvePoint]:
    """A method's points, n = 1 to `most`; proxy and gold are differences to n = 1.

    Args:
        study: as the points shall say.
        method: likewise.
        seed: likewise.
        proxies: for each prompt the proxies of its usable answers [N], at least `most` of them.
        golds: their golds, if there are any.
        most: largest n.
        options: of the bootstrap.
    """
    sizes_S = sizes_up_to(most)
    values = [
        np.stack([proxy_N, np.full(len(proxy_N), np.nan) if golds is None else golds[place]], axis=1)
        for place, proxy_N in enumerate(proxies)
    ]
    found_PSV = best_of_n(proxies, values, sizes_S)
    gain_PSV = found_PSV - found_PSV[:, :1]
    proxy_S, gold_S = gain_PSV.mean(axis=0).T
    if len(proxies) > 1:
        drawn_BS = bootstrap_means(gain_PSV[:, :, 1], options.bootstrap_draws, options.bootstrap_seed)
        low_S, high_S = np.percentile(drawn_BS, [2.5, 97.5], axis=0)
        error_S = drawn_BS.std(axis=0)
    else:
        low_S = high_S = error_S = np.full(len(sizes_S), np.nan)
    columns = (array.tolist() for array in (sizes_S, kl_of_n(sizes_S), proxy_S, gold_S, error_S, low_S, high_S))
    return [
        CurvePoint(
            study=study,
            method=method,
            seed=seed,
            step=None,
            n=n,
            beta=None,
            kl=kl,
            kl_estimator=KL_ESTIMATOR,
            proxy=proxy,
            gold=gold,
            standard_error=error,
            low=low,
            high=high,
        )
        for n, kl, proxy, gold, error, low, high in zip(*columns, strict=True)
    ]


def sweep(
    study: str, seed: int, methods: Mapping[str, Sequence[Array]], golds: Sequence[Array] | None, options: SweepOptions
) -> list[CurvePoint]:
    """The curves of all methods, to `max_n` or to as many answers as each prompt has.

    Errors: ValueError if `max_n` is more than any prompt has.
    """
    counts = [len(proxy_N) for proxy_N in next(iter(methods.values()))]
    most = min(counts) if options.max_n is None else options.max_n
    kept = [place for place, count in enumerate(counts) if count >= most]
    if not kept or most == 0:
        raise ValueError(f"max_n is {most}, and no prompt has more than {max(counts)} usable answers; lower it")
    chosen = None if golds is None else [golds[place] for place in kept]
    return [
        point
        for method, proxies in methods.items()
        for point in curve(study, method, seed, [proxies[place] for place in kept], chosen, most, options)
    ]
