"""Pools as pairs: the best answer of n beside the worst, or two samples a prompt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grmlight.data.files import write_whole
from grmlight.policy.best_of_n.pool import Pool, PoolAnswer
from grmlight.policy.read_prompts import NumberedPrompt

Array = np.ndarray

TOO_FEW, ALIKE, TIED = "too few usable answers", "all answers alike", "all worth the same"


@dataclasses.dataclass
class PairSet:
    """Pairs of a pool.

    Attributes:
        rows: a prompt has one or none.
        left_out: reason to the rows of the prompts that have none.
    """

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    left_out: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def leave_out(self, reason: str, prompt: NumberedPrompt) -> None:
        """Count a prompt that has no pair."""
        self.left_out.setdefault(reason, []).append(prompt.row)


def best_rows(
    pool: Pool, prompts: Sequence[NumberedPrompt], samples: int, scores: dict[int, Array], n: int, label: str
) -> PairSet:
    """Rejection sampling: of the first n usable answers of each prompt the best is `chosen`, the worst `rejected`.

    Args:
        pool: the answers.
        prompts: its prompts.
        samples: answers of each prompt that count.
        scores: for each prompt, by its place, the score of each answer [N]; NaN for those that do not count. Answers
            without text do not count either.
        n: answers to choose from. Prompts with fewer have no row, nor those whose answers are all worth the same.
        label: what scored.
    """
    found = PairSet()
    for place, score_N in scores.items():
        answers = pool.answers(place, samples)
        usable = np.array(_usable(answers, score_N), dtype=np.int64)[:n]
        if len(usable) < n:
            found.leave_out(TOO_FEW, prompts[place])
        elif np.ptp(score_N[usable]) == 0:
            found.leave_out(TIED, prompts[place])
        else:
            pair = usable[score_N[usable].argmax()], usable[score_N[usable].argmin()]
            if answers[pair[0]].text == answers[pair[1]].text:
                found.leave_out(ALIKE, prompts[place])
                continue
            found.rows.append(_row(answers, prompts[place], pair, score_N) | {"n": n, "labeled_by": label})
    return found


def pair_rows(
    pool: Pool, prompts: Sequence[NumberedPrompt], samples: int, scores: dict[int, Array] | None, label: str | None
) -> PairSet:
    """The first two different answers to each prompt as a pair.

    Args:
        pool: the answers.
        prompts: its prompts.
        samples: answers of each prompt that count.
        scores: for each prompt, by its place, the score of each answer [N]; the higher one is `chosen`, equal ones make
            no pair. None: as they were drawn, for something else to label.
        label: what scored.
    """
    found = PairSet()
    for place in range(pool.prompts):
        answers = pool.answers(place, samples)
        if not answers:
            # It is refused, and named as that.
            continue
        score_N = None if scores is None else scores.get(place, np.full(len(answers), np.nan))
        usable = _usable(answers, score_N)
        other = next((each for each in usable if answers[each].text != answers[usable[0]].text), None)
        if other is None:
            found.leave_out(ALIKE if len(usable) > 1 else TOO_FEW, prompts[place])
            continue
        pair = usable[0], other
        if score_N is None:
            found.rows.append(_row(answers, prompts[place], pair, None))
        elif score_N[pair[0]] == score_N[pair[1]]:
            found.leave_out(TIED, prompts[place])
        else:
            pair = pair if score_N[pair[0]] > score_N[pair[1]] else pair[::-1]
            found.rows.append(_row(answers, prompts[place], pair, score_N) | {"labeled_by": label})
    return found


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A JSON line a row, whole or not at all."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _usable(answers: Sequence[PoolAnswer], score_N: Array | None) -> list[int]:
    """The places of answers with text that have a score, if there are scores."""
    scored = range(len(answers)) if score_N is None else np.flatnonzero(np.isfinite(score_N)).tolist()
    return [place for place in scored if answers[place].text.strip()]


def _row(
    answers: Sequence[PoolAnswer], prompt: NumberedPrompt, pair: Sequence[int], score_N: Array | None
) -> dict[str, Any]:
    better, worse = (answers[place] for place in pair)
    row: dict[str, Any] = {
        "id": f"prompt-{prompt.row}",
        "prompt": prompt.prompt if isinstance(prompt.prompt, str) else list(prompt.prompt),
        "chosen": better.text,
        "rejected": worse.text,
        "chosen_ended": better.ended,
        "rejected_ended": worse.ended,
    }
    return row if score_N is None else row | {"margin": float(score_N[pair[0]] - score_N[pair[1]])}
