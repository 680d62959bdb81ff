"""Pools as pairs: the best answer of n beside the worst, or two samples a prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grmlight.data.files import write_whole
from grmlight.policy.best_of_n.pool import Pool
from grmlight.policy.rollouts import PromptText

Array = np.ndarray


def best_rows(
    pool: Pool, prompts: Sequence[PromptText], scores: dict[int, Array], n: int, label: str
) -> list[dict[str, Any]]:
    """Rejection sampling: of the first n usable answers of each prompt the best is `chosen`, the worst `rejected`.

    Args:
        pool: the answers.
        prompts: its prompts.
        scores: for each prompt, by its place, the score of each answer [N]; NaN for those that do not count.
        n: answers to choose from. Prompts with fewer have no row, nor those whose answers are all worth the same.
        label: what scored.
    """
    rows = []
    for prompt, score_N in scores.items():
        usable = np.flatnonzero(np.isfinite(score_N))[:n]
        if len(usable) < n or np.ptp(score_N[usable]) == 0:
            continue
        best, worst = usable[score_N[usable].argmax()], usable[score_N[usable].argmin()]
        rows.append(_row(pool, prompts[prompt], prompt, (best, worst), score_N, {"n": n, "labeled_by": label}))
    return rows


def pair_rows(
    pool: Pool, prompts: Sequence[PromptText], samples: int, scores: dict[int, Array] | None, label: str | None
) -> list[dict[str, Any]]:
    """The first two different answers to each prompt as a pair.

    Args:
        pool: the answers.
        prompts: its prompts.
        samples: answers of each prompt that count.
        scores: for each prompt, by its place, the score of each answer [N]; the higher one is `chosen`, equal ones make
            no pair. None: as they were drawn, for something else to label.
        label: what scored.
    """
    rows = []
    for prompt in range(pool.prompts):
        answers = pool.answers(prompt, samples)
        score_N = None if scores is None else scores.get(prompt)
        usable = [
            place
            for place, each in enumerate(answers)
            if each.text.strip() and (score_N is None or np.isfinite(score_N[place]))
        ]
        other = next((place for place in usable if answers[place].text != answers[usable[0]].text), None)
        if other is None:
            continue
        pair = usable[0], other
        if score_N is not None:
            if score_N[pair[0]] == score_N[pair[1]]:
                continue
            pair = pair if score_N[pair[0]] > score_N[pair[1]] else pair[::-1]
        rows.append(_row(pool, prompts[prompt], prompt, pair, score_N, {"labeled_by": label}))
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A JSON line a row, whole or not at all."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _row(
    pool: Pool,
    prompt: PromptText,
    number: int,
    pair: Sequence[int],
    score_N: Array | None,
    others: dict[str, Any],
) -> dict[str, Any]:
    answers = pool.answers(number)
    better, worse = pair
    row: dict[str, Any] = {"id": f"prompt-{number + 1}", "prompt": prompt if isinstance(prompt, str) else list(prompt)}
    row |= {"chosen": answers[better].text, "rejected": answers[worse].text}
    if score_N is not None:
        row |= {"margin": float(score_N[better] - score_N[worse])}
    return row | {name: value for name, value in others.items() if value is not None}
