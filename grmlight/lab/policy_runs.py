"""One run of `policy_curves`: a method from its start, measured on held-out prompts as it goes.

Every method but best-of-n is its shipped configuration, from the seed's SFT policy on the seed's data. The rewards of
online methods are the proxy's; those of constrained PPO stay its own two, and the proxy only looks on.

Shape suffixes: P prompts, S sizes (values of n), V values: proxy, gold.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np

from grmlight.evaluation.curves import CurvePoint
from grmlight.lab.files import world_files
from grmlight.lab.policy_start import HELD_OUT, LONGEST, Sizes, Start, pair_data
from grmlight.lab.shipped import Shipped, shipped
from grmlight.policy.best_of_n import BestOfN, SweepOptions, best_of_n, run_best_of_n
from grmlight.policy.guards.guard import Guard
from grmlight.policy.kl import Measured, SampledKL
from grmlight.policy.sampler import SamplingOptions

GOLD = "grmlight.lab.GoldReward"
PROXY = "proxy"
BEST_OF_N, CONSTRAINED = "best-of-n", "xi-ppo"

ALIGNMENT = ("dpo", "ipo", "slic", "rpo")
ONLINE = {"ppo": "ppo", "rloo": "rloo", "grpo": "grpo", CONSTRAINED: "ppo-constrained"}
"""Methods, and what their configurations are called."""

METHODS = (*ALIGNMENT, *ONLINE, BEST_OF_N)


@dataclasses.dataclass(frozen=True)
class PromptPoint:
    """A held-out prompt's part of a curve point.

    Attributes:
        place: the curve point's step or n.
        prompt: its number.
        proxy, gold: means over its answers; of best-of-n, expectations.
    """

    place: int
    prompt: int
    proxy: float
    gold: float


def run(method: str, start: Start, out: Path, configs: Path, seed: int, sizes: Sizes) -> tuple[list, list]:
    """Optimize, and give the curve points and their prompts' parts; the first of each is the start's.

    Args:
        method: of `METHODS`.
        start: of this seed.
        out: where best-of-n keeps its answers and scores.
        configs: the folder of the shipped configurations.
        seed: of the run.
        sizes: of the study.

    Returns: proxy and gold as they are, not as differences. The interval of a point of best-of-n is that of its
    difference to n = 1; of other methods only the standard error over prompts is known.
    """
    if method == BEST_OF_N:
        return _chosen(start, out, seed, sizes)
    L.seed_everything(seed, verbose=False)
    made = _aligned(method, start, configs, seed, sizes) if method in ALIGNMENT else None
    made = made or _online(method, start, configs, seed)
    measure = SampledKL(
        every_n_steps=_every(method, made, sizes),
        prompts=sizes.held_out,
        set=HELD_OUT,
        samples=sizes.samples,
        max_new_tokens=LONGEST,
        proxy=str(start.proxy),
        gold=GOLD,
        seed=seed,
        study="direct alignment" if method in ALIGNMENT else "online",
        method=method,
    )
    by_prompt = ByPrompt()
    made.fit(measure, by_prompt, max_steps=sizes.max_steps)
    return measure.points, by_prompt.points


class ByPrompt(Guard):
    """Keeps what each measurement of `SampledKL` found at each prompt."""

    needs = ("proxy", "gold")

    def __init__(self) -> None:
        super().__init__()
        self.points: list[PromptPoint] = []

    def look(self, trainer: L.Trainer, prompts: Sequence[Measured]) -> None:
        """Take it in."""
        for each in prompts:
            found = each.means
            self.points.append(PromptPoint(trainer.global_step, each.number, found["proxy"], found["gold"]))


def _aligned(method: str, start: Start, configs: Path, seed: int, sizes: Sizes) -> Shipped:
    def change(entries: dict[str, Any]) -> None:
        entries["model"]["init_args"] |= {"backbone": str(start.policy), "seed": seed}
        entries["data"] = pair_data(entries["data"], start.pairs, start, sizes.pairs, seed)
        entries["trainer"]["callbacks"] = []

    return shipped(configs / f"{method}.yaml", change)


def _online(method: str, start: Start, configs: Path, seed: int) -> Shipped:
    def change(entries: dict[str, Any]) -> None:
        model, data = entries["model"]["init_args"], entries["data"]
        model |= {"backbone": str(start.policy), "seed": seed, "watch": []}
        if method != CONSTRAINED:
            model["rewards"] = [{"spec": str(start.proxy), "name": PROXY}]
        kept = {name: data["init_args"][name] for name in ("max_new_tokens", "prompts_per_step")}
        own = {"train": str(start.prompts), "val": {HELD_OUT: str(start.held_out)}, "seed": seed}
        tokenizer = {"tokenizer": str(world_files(0).tokenizer)}
        entries["data"] = {"class_path": "grmlight.policy.PromptDataModule", "init_args": kept | own | tokenizer}
        entries["trainer"]["callbacks"] = []

    return shipped(configs / f"{ONLINE[method]}.yaml", change)


def _every(method: str, made: Shipped, sizes: Sizes) -> int:
    """Optimizer steps between two measurements."""
    if method in ALIGNMENT:
        steps = math.ceil(sizes.pairs / made.data.pairs_per_step) * made.epochs
    else:
        batches = math.ceil(sizes.prompts / made.data.prompts_per_step) * made.epochs
        steps = batches * made.model.steps_per_iteration
    if sizes.max_steps > 0:
        steps = min(steps, sizes.max_steps)
    return math.ceil(steps / sizes.measurements)


def _chosen(start: Start, out: Path, seed: int, sizes: Sizes) -> tuple[list[CurvePoint], list[PromptPoint]]:
    job = BestOfN(
        policy=str(start.policy),
        prompts=str(start.held_out),
        out=out,
        rewards={PROXY: str(start.proxy)},
        gold=GOLD,
        sampling=SamplingOptions(samples=sizes.answers, max_new_tokens=LONGEST),
        seed=seed,
        sweep=SweepOptions(max_n=sizes.max_n),
    )
    found = run_best_of_n(job)
    scores = [row.scores_NR[row.usable_N] for row in found.scores]
    sizes_S = np.array([point.n for point in found.points])
    values_PSV = best_of_n([scores_NV[:, 0] for scores_NV in scores], scores, sizes_S)
    whole = np.asarray(np.isfinite(values_PSV).all(axis=(1, 2)))
    proxy_1, gold_1 = values_PSV[whole, 0].mean(axis=0).tolist()
    points = [_shifted(point, seed, proxy_1, gold_1) for point in found.points]
    by_prompt = [
        PromptPoint(int(n), row.prompt, *values_PSV[number, place].tolist())
        for place, n in enumerate(sizes_S)
        for number, row in enumerate(found.scores)
        if whole[number]
    ]
    return points, by_prompt


def _shifted(point: CurvePoint, seed: int, proxy: float, gold: float) -> CurvePoint:
    """A point that is a difference to n = 1 as what it is."""
    low, high = (None if bound is None else bound + gold for bound in (point.low, point.high))
    own = {"study": BEST_OF_N, "method": BEST_OF_N, "seed": seed}
    return dataclasses.replace(point, **own, proxy=point.proxy + proxy, gold=point.gold + gold, low=low, high=high)
