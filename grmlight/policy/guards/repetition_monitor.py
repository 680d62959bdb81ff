"""RepetitionMonitor: warns when a policy says the same again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from grmlight.policy.guards.guard import Guard
from grmlight.policy.kl import Measured


class RepetitionMonitor(Guard):
    """Logs `guard/distinct_1` to `distinct_3` and `guard/repeat`. A figure beyond its bound is warned of once.

    `distinct_n` is the number of different n-grams of tokens over the number of all, within an answer, so that many
    answers to like prompts are no repetition; the mean over answers. `repeat` is the longest run of tokens that occurs
    twice in an answer (it may overlap itself), over the answer's length; the mean over answers.

    Args:
        min_distinct: bound of distinct_2.
        max_repeat: bound of repeat.

    Source: distinct-n after Li et al. 2016 (arXiv 1510.03055).
    """

    def __init__(self, min_distinct: float = 0.5, max_repeat: float = 0.5) -> None:
        super().__init__()
        if not 0 <= min_distinct <= 1 or not 0 <= max_repeat <= 1:
            raise ValueError(
                f"RepetitionMonitor: min_distinct and max_repeat must be from 0 to 1, got {min_distinct}, {max_repeat}"
            )
        self.min_distinct, self.max_repeat = min_distinct, max_repeat
        self.told: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """What was warned of."""
        return {"told": list(self.told)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.told = list(state_dict["told"])

    def look(self, trainer: Trainer, prompts: Sequence[Measured]) -> None:
        """Measure, log, and warn at a bound."""
        answers = [answer.tokens for each in prompts for answer in each.rollout.answers]
        figures = {f"distinct_{n}": _mean([distinct(tokens, n) for tokens in answers]) for n in (1, 2, 3)}
        figures["repeat"] = _mean([longest_repeat(tokens) / max(len(tokens), 1) for tokens in answers])
        self.record(trainer, figures)
        if figures["distinct_2"] < self.min_distinct:
            said = f"of an answer's pairs of tokens {100 * figures['distinct_2']:.0f}% are different"
            self._tell(trainer, "distinct_2", f"is below min_distinct {self.min_distinct:g}: {said}")
        if figures["repeat"] > self.max_repeat:
            said = f"answers repeat {100 * figures['repeat']:.0f}% of themselves"
            self._tell(trainer, "repeat", f"is beyond max_repeat {self.max_repeat:g}: {said}")

    def _tell(self, trainer: Trainer, name: str, text: str) -> None:
        if name not in self.told:
            self.told.append(name)
            self.warn(trainer, f"{name} {text}")


def distinct(tokens: np.ndarray, n: int) -> float:
    """Different n-grams over all n-grams; 1 for an answer that has none."""
    ids = tokens.tolist()
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def longest_repeat(tokens: np.ndarray) -> int:
    """Length of the longest run of tokens that occurs at two places."""
    longest = 0
    for lag in range(1, len(tokens)):
        if len(tokens) - lag <= longest:
            break
        # Where the tokens agree with those `lag` places on; a run of agreements is a run that occurs twice.
        breaks = np.flatnonzero(np.concatenate([[True], tokens[lag:] != tokens[:-lag], [True]]))
        longest = max(longest, int(np.diff(breaks).max()) - 1)
    return longest


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
