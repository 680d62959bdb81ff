"""What the best of n answers is worth, for every n, from one pool of N answers.

The estimator is the mean, over all subsets of n of the N answers, of the gold of the one with the highest proxy
(Nakano et al. 2021, arXiv 2112.09332, appendix I; Gao et al. 2023, arXiv 2210.10760). With answers in ascending order
of the proxy, answer i is the best of C(i-1, n-1) subsets of C(N, n), so it is a weighted sum with

    w_N = n / N,    w_(i-1) = w_i (i - n) / (i - 1),

which is O(N), overflows nowhere, and is exact to float64's rounding. Answers of one proxy share their mean gold: that
is the expectation over how the tie is broken.

Shape suffixes: N answers of a prompt, S sizes (values of n), P prompts, V values to be averaged, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

_AT_ONCE = 4_000_000
"""Weights held at a time."""

_PER_OCTAVE = 4

Array = np.ndarray


def kl_of_n(sizes_S: Int64[Array, " S"]) -> Float64[Array, " S"]:
    """KL of best-of-n to the policy, nats: log n - (n - 1) / n. With ties of the proxy it is an upper bound."""
    return np.log(sizes_S) - (sizes_S - 1) / sizes_S


def sizes_up_to(most: int) -> Int64[Array, " S"]:
    """1 to `most`: both ends, all powers of two, and about four sizes an octave, evenly spaced in log n."""
    octaves = np.arange(int(np.log2(most) * _PER_OCTAVE) + 1) / _PER_OCTAVE
    return np.unique(np.append(np.rint(2**octaves), most)).astype(np.int64)


def weights(answers: int, sizes_S: Int64[Array, " S"]) -> Float64[Array, "S N"]:
    """How likely each answer is the best of n drawn without replacement, in ascending order of the proxy.

    Rows sum to 1; a size above the number of answers is refused by an assertion.
    """
    assert sizes_S.min() >= 1
    assert sizes_S.max() <= answers
    place_N = np.arange(answers, 1, -1)
    factors_SN = np.maximum(place_N - sizes_S[:, None], 0) / (place_N - 1)
    last_S1 = sizes_S[:, None] / answers
    return np.cumprod(np.concatenate([last_S1, factors_SN], axis=1), axis=1)[:, ::-1]


def ordered(proxy_N: Float64[Array, " N"], values_NV: Float64[Array, "N V"]) -> Float64[Array, "N V"]:
    """The values in ascending order of the proxy, answers of one proxy each with the mean of their values."""
    order_N = np.argsort(proxy_N, kind="stable")
    sorted_N, values_NV = proxy_N[order_N], values_NV[order_N]
    first_N = np.flatnonzero(np.append(True, sorted_N[1:] != sorted_N[:-1]))
    counts = np.diff(np.append(first_N, len(sorted_N)))
    return np.repeat(np.add.reduceat(values_NV, first_N) / counts[:, None], counts, axis=0)


def best_of_n(
    proxies: Sequence[Float64[Array, " N"]], values: Sequence[Float64[Array, "N V"]], sizes_S: Int64[Array, " S"]
) -> Float64[Array, "P S V"]:
    """The expected values of the answer that has the highest proxy of n, for each prompt and size.

    Args:
        proxies: for each prompt the proxy of its answers, finite; prompts may have different numbers of answers.
        values: for each prompt what is to be averaged, a column each: the gold, the proxy itself.
        sizes_S: values of n, at least 1.

    Returns: float64; NaN where n is more than a prompt has answers.
    """
    found_PSV = np.full((len(proxies), len(sizes_S), values[0].shape[1]), np.nan)
    counts_P = np.array([len(proxy) for proxy in proxies])
    for answers in np.unique(counts_P[counts_P > 0]).tolist():
        rows = np.flatnonzero(counts_P == answers).tolist()
        sorted_NX = np.concatenate([ordered(proxies[row], values[row]) for row in rows], axis=1)
        possible = np.flatnonzero(sizes_S <= answers)
        for part in np.array_split(possible, max(1, len(possible) * answers // _AT_ONCE)):
            means_SX = weights(answers, sizes_S[part]) @ sorted_NX
            means_SPV = means_SX.reshape(len(part), len(rows), -1)
            for place, row in enumerate(rows):
                found_PSV[row, part] = means_SPV[:, place]
    return found_PSV


def bootstrap_means(values_PS: Float64[Array, "P S"], draws: int, seed: int) -> Float64[Array, "B S"]:
    """The mean over prompts on each draw of as many prompts with replacement (Efron and Tibshirani 1993, chapter 6)."""
    prompts = len(values_PS)
    counts_BP = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=draws)
    return counts_BP @ values_PS / prompts
