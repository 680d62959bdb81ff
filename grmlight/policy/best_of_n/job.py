"""What `grmlight bon` is asked to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from grmlight.data.files import LOCK
from grmlight.models.aggregation import Aggregation
from grmlight.policy.best_of_n.sweep import SweepOptions
from grmlight.policy.sampler import SamplingOptions

GOLD = "gold"
_AGGREGATIONS = get_args(Aggregation)

POOL, SCORES, REPORT = "pool.jsonl", "scores", "report.json"
CURVES, TABLES, PICTURE = "curves.jsonl", "curves.md", "curves.png"
"""What is written in `out`."""


@dataclasses.dataclass(frozen=True)
class BestOfN:
    """What shall be done.

    Attributes:
        policy: a model folder, a run directory or a hub name.
        prompts: a file of prompts.
        out: the folder of the pool, its scores and the curves.
        rewards: proxies by name: model folders, runs, or paths of classes and functions.
        gold: the reward that stands for people, likewise.
        sampling: how answers are drawn, and how many.
        seed: of the draws.
        sweep: how curves are made.
        pairs: the file for two answers a prompt.
        best: the file for the best answers of the first `n`.
        n: see `best`.
        label: what orders pairs and picks the best: a reward, an aggregation or `gold`; by default the reward, the mean
            of several, or without any the gold.
    """

    policy: str
    prompts: str
    out: Path
    rewards: Mapping[str, str]
    gold: str | None
    sampling: SamplingOptions
    seed: int = 0
    sweep: SweepOptions = dataclasses.field(default_factory=SweepOptions)
    pairs: Path | None = None
    best: Path | None = None
    n: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        self._check_files()
        if (self.best is None) != (self.n is None):
            raise ValueError("--best FILE and --n K go together: the best of K answers")
        if self.n is not None and not 2 <= self.n <= self.sampling.samples:
            raise ValueError(f"n is {self.n}: give at least 2, and at most the {self.sampling.samples} samples")
        if self.label is not None and self.label not in self.labels:
            raise ValueError(f"label {self.label!r} is none of {', '.join(self.labels) or 'nothing: name a --reward'}")
        if self.best is not None and not self.labels:
            raise ValueError("--best needs something to choose by; name a --reward or a --gold")

    def _check_files(self) -> None:
        """Nothing that is written may replace what is read, or what else is written."""
        taken = {(self.out / name).resolve() for name in (POOL, SCORES, REPORT, CURVES, TABLES, PICTURE, LOCK)}
        prompts = Path(self.prompts).resolve()
        if _lies_in(prompts, taken):
            raise ValueError(f"{self.prompts}: is written by this command; name another folder with --out")
        for name, path in (("--pairs", self.pairs), ("--best", self.best)):
            if path is None:
                continue
            found, out = path.resolve(), self.out.resolve()
            # `out` is made before anything is written.
            if path.is_dir() or found == out or not (path.parent.is_dir() or found.parent == out):
                raise ValueError(f"{path}: cannot be written; name a file in a folder that exists")
            if _lies_in(found, {*taken, prompts}):
                raise ValueError(f"{name} {path}: is another file of this command, or lies in one; name another")
            taken.add(found)

    @property
    def labels(self) -> list[str]:
        """What can order answers, the default first."""
        several = list(_AGGREGATIONS) if len(self.rewards) > 1 else []
        return [*several, *self.rewards, *([GOLD] if self.gold else [])]


def named_rewards(specs: Sequence[str]) -> dict[str, str]:
    """`NAME=SPEC` or `SPEC`, which is then its own name.

    Errors: ValueError for two of one name, and where the name or what it stands for is empty.
    """
    found: dict[str, str] = {}
    for spec in specs:
        name, equals, rest = spec.partition("=")
        name, rest = (name, rest) if equals and not Path(spec).exists() else (spec, spec)
        if not name.strip() or not rest.strip():
            raise ValueError(f"reward {spec!r}: one side is empty; give it as SPEC or NAME=SPEC")
        if name in found or name in (GOLD, *_AGGREGATIONS):
            raise ValueError(f"reward {name!r}: the name is taken; give every reward one of its own, as NAME=SPEC")
        found[name] = rest
    return found


def _lies_in(path: Path, others: set[Path]) -> bool:
    return not others.isdisjoint((path, *path.parents))
