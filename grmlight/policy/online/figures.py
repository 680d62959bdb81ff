"""Figures of an iteration's rollouts, and their means until a line is logged.

Shape suffixes: N answers, L answer tokens, K streams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from grmlight.policy import kl
from grmlight.policy.online.experience import Experience, Streams, sum_by_answer
from grmlight.policy.online.scoring import empty


def rollout_figures(
    experience: Experience,
    watched: Mapping[str, Tensor],
    streams: Streams,
    kl_coefficient: float,
    combined_N: Tensor | None,
) -> dict[str, float]:
    """The figures by name; one that is not defined is left out.

    Args:
        experience: the rollouts.
        watched: rewards that are only watched, of each answer.
        streams: their advantages and returns.
        kl_coefficient: of this iteration.
        combined_N: the rewards as they are combined, before shaping: whitened ones have the same mean at every
            iteration; None where nothing combines them.
    """
    tokens_N, known_N = experience.tokens_N, experience.known_N
    answers = [answer for rollout in experience.rollouts for answer in rollout.answers]
    k3_L = kl.k3(experience.logps_L, experience.reference_logps_L)
    figures = {
        "kl": experience.kl_N.mean().item(),
        "kl_k3": sum_by_answer(k3_L, tokens_N).mean().item(),
        "kl_coefficient": kl_coefficient,
        "entropy": -experience.logps_L.mean().item(),
        "tokens": tokens_N.double().mean().item(),
        "ended": sum(answer.ended for answer in answers) / len(answers),
        "empty": empty(experience.rollouts).double().mean().item(),
        "unscored": (~known_N).double().mean().item(),
    }
    for name, values_N in watched.items():
        figures[f"unscored_watch_{name}"] = (~values_N.isfinite()).double().mean().item()
    for name, values_N in [*experience.rewards.items(), *((f"watch_{name}", each) for name, each in watched.items())]:
        figures[f"reward_{name}" if name in experience.rewards else name] = _mean(values_N)
    if combined_N is not None:
        scores_N = combined_N[known_N]
        figures |= {"score": _mean(scores_N), "score_std": scores_N.std().item() if len(scores_N) > 1 else math.nan}
        figures["length_correlation"] = _correlation(scores_N, tokens_N[known_N].double())
    for name, returns_L in streams.returns.items():
        label = "explained_variance" if len(streams.returns) == 1 else f"explained_variance_{name}"
        known_L = known_N[experience.response_L]
        figures[label] = _explained(returns_L[known_L], experience.values[name][known_L])
    if all(answer.logps is not None for answer in answers):
        sampled_L = torch.cat(
            [torch.from_numpy(answer.logps).double() for answer in answers if answer.logps is not None]
        )
        figures["sampler_gap"] = (sampled_L - experience.logps_L).abs().mean().item()
    return {name: value for name, value in figures.items() if math.isfinite(value)}


class Averages:
    """Means of figures over the iterations since the last line. A checkpoint keeps them."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, figures: Mapping[str, float]) -> None:
        """The figures of one iteration."""
        for name, value in figures.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = [total + value, count + 1]

    def take(self) -> dict[str, float]:
        """The means; begins anew."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Sums and numbers by name."""
        return {name: list(each) for name, each in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._sums = {name: list(each) for name, each in state.items()}


def _mean(values: Tensor) -> float:
    known = values[values.isfinite()]
    return known.mean().item() if len(known) else math.nan


def _explained(returns_L: Tensor, values_L: Tensor) -> float:
    """The share of the returns' variance that the values tell: 1 is all of it, below 0 is worse than their mean."""
    variance = returns_L.var(correction=0).item() if len(returns_L) else 0.0
    return 1 - (returns_L - values_L).var(correction=0).item() / variance if variance > 0 else math.nan


def _correlation(first_N: Tensor, second_N: Tensor) -> float:
    if len(first_N) < 2 or not first_N.std() > 0 or not second_N.std() > 0:
        return math.nan
    return torch.corrcoef(torch.stack([first_N, second_N]))[0, 1].item()
