"""What best-of-n read, sampled, scored and left out: as plain values and in lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grmlight.policy.best_of_n.fill import Filled
from grmlight.policy.best_of_n.job import BestOfN
from grmlight.policy.best_of_n.pool import Pool
from grmlight.policy.best_of_n.scores import PromptScores


def counts(
    job: BestOfN,
    pool: Pool,
    rows: Sequence[int],
    filled: Filled,
    matrix: Sequence[PromptScores],
    names: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """What was read, sampled, scored and left out, as plain values; prompts are named by their rows.

    Args:
        job: what was asked.
        pool: the answers.
        rows: of the prompts in their file.
        filled: what was sampled now.
        matrix: the scores.
        names: of the rewards, the gold with them.
        seconds: that it took.

    Errors: ValueError if no answer has a score of every reward.
    """
    whole_MR = np.concatenate([row.scores_NR for row in matrix])
    usable = [row for row in matrix if row.usable_N.any()]
    if not usable and names:
        blind = [name for place, name in enumerate(names) if not np.isfinite(whole_MR[:, place]).any()]
        raise ValueError(f"reward {', '.join(blind or names)}: scores none of the {len(whole_MR)} answers; look at one")
    start = np.concatenate([row.scores_NR[row.usable_N] for row in usable]).mean(axis=0) if names else []
    return {
        "policy": job.policy,
        "source": job.prompts,
        "prompts": pool.prompts,
        "prompts_refused": {str(rows[place]): reason for place, reason in (pool.refused or {}).items()},
        "prompts_without_usable_answers": [rows[row.prompt] for row in matrix if not row.usable_N.any()],
        "answers": len(whole_MR),
        "distinct": sum(row.distinct for row in matrix),
        "empty": sum(row.empty for row in matrix),
        "cut_at_max_new_tokens": sum(row.cut for row in matrix),
        "not_scored": {name: int((~np.isfinite(whole_MR[:, place])).sum()) for place, name in enumerate(names)},
        "constant_prompts": {
            name: sum(bool(np.ptp(row.scores_NR[row.usable_N, place]) == 0) for row in usable)
            for place, name in enumerate(names)
        },
        "mean_at_n_1": dict(zip(names, map(float, start), strict=True)),
        "sampler": filled.sampler,
        "sampled_now": filled.answers,
        "sampling_seconds": filled.seconds,
        "seconds": seconds,
        "bytes_cut_off": pool.cut_off,
    }


def describe(job: BestOfN, report: Mapping[str, Any]) -> list[str]:
    """What happened, a line each; what did not happen has none."""
    refused = report["prompts_refused"]
    notes = [
        f"policy {job.policy}: {report['answers']} answers to {report['prompts'] - len(refused)} prompts of "
        f"{job.prompts}, {report['distinct']} of them different, {report['empty']} empty, "
        f"{report['cut_at_max_new_tokens']} cut off at {job.sampling.max_new_tokens} tokens"
    ]
    if report["sampled_now"]:
        share = report["sampling_seconds"] / report["seconds"]
        notes.append(
            f"sampler {report['sampler']}: {report['sampled_now']} answers in {report['sampling_seconds']:.1f} s, "
            f"{share:.0%} of the time"
        )
    if report["bytes_cut_off"]:
        notes.append(f"an incomplete last line of {report['bytes_cut_off']} bytes was cut off and sampled again")
    notes += [f"refused: prompt {row} {reason}" for row, reason in refused.items()]
    notes += [f"reward {name}: {n} answers left out, not scored" for name, n in report["not_scored"].items() if n]
    if left := report["prompts_without_usable_answers"]:
        notes.append(f"left out: prompts without an answer that all rewards score: {_listed(left)}")
    notes += [
        f"reward {name}: the same for every answer to {n} prompts"
        for name, n in report["constant_prompts"].items()
        if n
    ]
    notes += [f"reward {name}: constant, its curve is that of a random choice" for name in report.get("constant", [])]
    if left := report.get("prompts_below_max_n"):
        notes.append(f"left out: prompts with fewer than {report['max_n']} usable answers: {_listed(left)}")
    elif "max_n" in report and report["max_n"] < job.sampling.samples and job.sweep.max_n is None:
        fewest = report["fewest_usable"]
        notes.append(
            f"n ends at {report['max_n']}, the usable answers of prompt {fewest['prompt']}; --max_n leaves it out"
        )
    for what in ("pairs", "best"):
        if what in report:
            found = report[what]
            notes.append(
                f"{what}: {found['file']}, {found['rows']} rows, ordered by {found['labeled_by'] or 'nothing'}"
            )
            notes += [
                f"{what}: prompts left out, {reason}: {_listed(left)}" for reason, left in found["left_out"].items()
            ]
    return notes


def _listed(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
