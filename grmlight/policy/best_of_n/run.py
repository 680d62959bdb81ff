"""Best-of-n from end to end: sample, score, read off curves, write data sets."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grmlight.data.files import sole_writer, write_json, write_whole
from grmlight.evaluation.curves import CurvePoint, plot_curves, write_curves
from grmlight.policy.best_of_n.datasets import PairSet, best_rows, pair_rows, write_rows
from grmlight.policy.best_of_n.fill import fill
from grmlight.policy.best_of_n.identity import policy_identity, prompts_identity, reward_identity
from grmlight.policy.best_of_n.job import CURVES, GOLD, PICTURE, POOL, REPORT, SCORES, TABLES, BestOfN
from grmlight.policy.best_of_n.output import as_markdown, as_text
from grmlight.policy.best_of_n.pool import Pool
from grmlight.policy.best_of_n.report import counts, describe
from grmlight.policy.best_of_n.scores import PromptScores, read_matrix, score_file, score_pool
from grmlight.policy.best_of_n.sweep import proxies_of, sweep
from grmlight.policy.read_prompts import NumberedPrompt, numbered_prompts
from grmlight.policy.rewards import open_reward
from grmlight.policy.rollouts import PromptText
from grmlight.policy.sampler import open_sampler

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
        notes: what was read, sampled and left out, in lines.
        points: of all curves; none without rewards.
        report: the same counts as plain values.
        scores: the score matrix, a row a prompt: the rewards in their order, then the gold.
    """

    notes: list[str]
    points: list[CurvePoint]
    report: dict[str, Any]
    scores: list[PromptScores]

    def describe(self) -> str:
        """For a terminal."""
        return "\n\n".join(part for part in ("\n".join(self.notes), as_text(self.points)) if part)


def run_best_of_n(job: BestOfN) -> Result:
    """Do it; what is on the disk already is neither sampled nor scored again.

    Writes in `out`: `pool.jsonl`, `scores/`, `report.json`, and with rewards `curves.jsonl`, `curves.md`, `curves.png`.

    Errors: ValueError in one line; the pool and the scores keep what was paid for.
    """
    specs = dict(job.rewards) | ({GOLD: job.gold} if job.gold else {})
    identities = {name: reward_identity(spec) for name, spec in specs.items()}
    prompts = numbered_prompts(job.prompts)
    with sole_writer(job.out):
        return _run(job, specs, identities, prompts)


def _run(job: BestOfN, specs: dict[str, str], identities: dict[str, str], prompts: Sequence[NumberedPrompt]) -> Result:
    began = time.perf_counter()
    texts, rows = [each.prompt for each in prompts], [each.row for each in prompts]
    pool = Pool(job.out / POOL, _identity(job, texts), len(prompts))
    filled = fill(pool, texts, job.sampling, job.seed, lambda: open_sampler(job.policy), rows)
    files = {name: score_file(job.out / SCORES, pool, identity) for name, identity in identities.items()}
    for name, spec in specs.items():
        score_pool(files[name], pool, texts, lambda spec=spec: open_reward(spec))
    matrix = list(read_matrix(list(files.values()), pool, job.sampling.samples))
    report = counts(job, pool, rows, filled, matrix, list(specs), time.perf_counter() - began)
    points = _curves(job, rows, matrix, report)
    report |= _data_sets(job, pool, prompts, matrix)
    result = Result(describe(job, report), points, report, matrix)
    _write(job.out, result)
    return result


def _identity(job: BestOfN, prompts: Sequence[PromptText]) -> dict[str, Any]:
    sampling = {name: getattr(job.sampling, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k")}
    return {"policy": policy_identity(job.policy), "prompts": prompts_identity(prompts), "seed": job.seed} | sampling


def _curves(
    job: BestOfN, rows: Sequence[int], matrix: Sequence[PromptScores], report: dict[str, Any]
) -> list[CurvePoint]:
    """The points of all methods; what is left out of them goes to the report."""
    if not job.rewards:
        return []
    usable = [row for row in matrix if row.usable_N.any()]
    scores = [row.scores_NR[row.usable_N] for row in usable]
    count = len(job.rewards)
    rewards, golds = [each[:, :count] for each in scores], [each[:, count] for each in scores] if job.gold else None
    methods, report["constant"] = proxies_of(list(job.rewards), rewards, job.sweep.variance_weight)
    points = sweep(job.out.name, job.seed, methods, golds, job.sweep)
    report["max_n"] = most = max(point.n or 0 for point in points)
    report["prompts_below_max_n"] = [rows[row.prompt] for row in usable if row.usable_N.sum() < most]
    fewest = min(usable, key=lambda row: row.usable_N.sum())
    report["fewest_usable"] = {"prompt": rows[fewest.prompt], "answers": int(fewest.usable_N.sum())}
    return points


def _data_sets(
    job: BestOfN, pool: Pool, prompts: Sequence[NumberedPrompt], matrix: Sequence[PromptScores]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    label = job.label or next(iter(job.labels), None)
    scores = None if label is None else _scores_by(job, label, matrix)
    if job.pairs is not None:
        pairs = pair_rows(pool, prompts, job.sampling.samples, scores, label)
        write_rows(job.pairs, pairs.rows)
        found["pairs"] = _told(job.pairs, pairs, label)
    if job.best is not None and job.n is not None and scores is not None and label is not None:
        pairs = best_rows(pool, prompts, job.sampling.samples, scores, job.n, label)
        write_rows(job.best, pairs.rows)
        found["best"] = _told(job.best, pairs, label) | {"n": job.n}
    return found


def _told(file: Path, pairs: PairSet, label: str | None) -> dict[str, Any]:
    return {"file": str(file), "rows": len(pairs.rows), "labeled_by": label, "left_out": pairs.left_out}


def _scores_by(job: BestOfN, label: str, matrix: Sequence[PromptScores]) -> dict[int, Array]:
    """What each answer is worth to one label, by prompt; NaN where a reward could not score it."""
    columns = [*job.rewards, *([GOLD] if job.gold else [])]
    usable = [row.scores_NR[row.usable_N] for row in matrix]
    if label in columns:
        values = [scores_NR[:, columns.index(label)] for scores_NR in usable]
    else:
        rewards = [scores_NR[:, : len(job.rewards)] for scores_NR in usable]
        values = proxies_of(list(job.rewards), rewards, job.sweep.variance_weight)[0][label]
    found: dict[int, Array] = {}
    for row, value_N in zip(matrix, values, strict=True):
        found[row.prompt] = np.full(len(row.scores_NR), np.nan)
        found[row.prompt][row.usable_N] = value_N
    return found


def _write(out: Path, result: Result) -> None:
    write_json(out / REPORT, result.report)
    if result.points:
        write_curves(out / CURVES, result.points)
        write_whole(out / TABLES, as_markdown(result.points, result.notes))
        plot_curves(result.points, out / PICTURE)
