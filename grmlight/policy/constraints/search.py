"""ThresholdSearch: thresholds found by Nelder-Mead within one run (NM-PPO of Moskovitz et al. 2023).

Notable decisions:

- The start simplex is what the untrained policy's first answers are worth, and from there one side up along each
  reward; a side is so many standard deviations of those answers. Nothing is known from other runs.
- Distances are measured in sides, so that neither the zero nor the unit of a reward matters. (The paper takes 5% of the
  target itself, its code 0.005.)
- What is measured at a vertex is the policy whose weights are kept: both are those of the start of one iteration.
- The evaluation is asked for the answers to training prompts that the run has sampled anyway; no prompt that is held
  out is touched.
- Once every further point is near a measured one the run stops: nothing of what it would learn is kept.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from grmlight.data.files import write_whole
from grmlight.evaluation.group_scorer import GroupScorer
from grmlight.evaluation.run_report import run_directory
from grmlight.policy.constraints.constraints import Constraints
from grmlight.policy.constraints.nelder_mead import NelderMead, Point
from grmlight.policy.constraints.thresholds import write_thresholds
from grmlight.policy.online.collect import score
from grmlight.policy.online.experience import Experience
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.ranks import AllRanks
from grmlight.policy.rewards import open_reward
from grmlight.training.checkpoints import keep_checkpoint

logger = logging.getLogger(__name__)

_REUSES = 100
"""Points in a row that need no run, after which the simplex counts as shrunk to a point."""


@dataclasses.dataclass(frozen=True)
class Vertex:
    """One measured vector of thresholds.

    Attributes:
        thresholds: what was asked, by reward.
        values: what the measured answers were worth.
        evaluation: mean of the evaluation over them.
        standard_error: of that mean.
        reached: whether every reward had come near enough.
        iterations: spent on it.
        step: optimizer steps of the run so far.
        queries: answers that the evaluation was asked for so far, this vertex included.
    """

    thresholds: dict[str, float]
    values: dict[str, float]
    evaluation: float
    standard_error: float
    reached: bool
    iterations: int
    step: int
    queries: int


class ThresholdSearch(Callback):
    """Searches for the thresholds at which the evaluation is highest, while the policy trains.

    At each vertex the run goes on with the policy as it is, under `Constraints(variant="xi")`, until every reward is
    near its threshold or a share of the run is spent; then the evaluation of that policy is asked. Points near a
    measured one are not run again; when no other are left, the search has converged and the run stops. At the end the
    policy of the best vertex is put back, and its thresholds are written to `thresholds.yaml` in the run's directory,
    beside `vertices.jsonl`.

    Args:
        evaluation: the reward that is asked, as `rewards` of the module are named: a folder, a run or a class path.
        side: of the start simplex along each reward, in standard deviations of the untrained policy's answers.
        tolerance: how near is near, in sides; for reaching thresholds and for taking over what was measured.
        share: of the run that a vertex may take; the paper's is an eighth.
    """

    def __init__(self, evaluation: str, side: float = 1.0, tolerance: float = 0.05, share: float = 0.125) -> None:
        super().__init__()
        if not (side > 0 and tolerance > 0 and 0 < share <= 1):
            raise ValueError(
                f"threshold search: side, tolerance and share must be positive, share at most 1, got {side}, "
                f"{tolerance}, {share}"
            )
        self.evaluation, self.side, self.tolerance, self.share = evaluation, side, tolerance, share
        self.vertices: list[Vertex] = []
        self.queries = 0
        self._scorer: GroupScorer | None = None
        self._search: NelderMead | None = None
        self._names: list[str] = []
        self._sides: dict[str, float] = {}
        self._iterations = 0
        self._measuring = True
        self._reached = True
        self._seen = 0
        self._candidate: dict[str, Tensor] = {}
        self._best: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the module's own.

        Errors: ValueError if there is nothing to search, or the evaluation cannot be opened.
        """
        mixing = getattr(pl_module, "mixing", None)
        if not isinstance(mixing, Constraints) or mixing.variant != "xi":
            raise ValueError("threshold search: model.init_args.mixing must be Constraints with variant: xi")
        if mixing.thresholds and not mixing.searched:
            raise ValueError("threshold search: it finds thresholds from the untrained policy; drop those of mixing")
        mixing.searched = True
        self._scorer = self._scorer or open_reward(self.evaluation)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where the checkpoint left off.

        Errors: ValueError for a run without an end, and for sharded weights.
        """
        module, mixing = _parts(pl_module)
        if isinstance(module.model, FSDPModule):
            raise ValueError("threshold search keeps whole weights; train with DDP or on one device")  # noqa: TRY004
        self._limit(trainer, module)
        self._seen = module.iterations
        if self._search is not None:
            mixing.move(self._aim())
        trainer.should_stop = trainer.should_stop or self._converged

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the weights of a policy that is about to be measured."""
        if self._measuring:
            self._candidate = _learning(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, or see whether it is time to.

        Errors: ValueError for rewards without a side and an evaluation without a number; a checkpoint is there.
        """
        module, mixing = _parts(pl_module)
        if module.iterations == self._seen or self._converged:
            return
        self._seen = module.iterations
        assert module.experience is not None
        if self._measuring:
            try:
                if self._search is None:
                    self._begin(module.experience, mixing)
                self._measure(trainer, module.experience, mixing)
            except ValueError:
                keep_checkpoint(trainer)
                raise
            trainer.should_stop = trainer.should_stop or self._converged
            return
        self._iterations += 1
        self._reached = self._near(mixing.values, mixing.thresholds)
        self._measuring = self._reached or self._iterations >= self._limit(trainer, module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the policy of the best vertex back."""
        if not self.vertices:
            return
        parameters = dict(pl_module.named_parameters())
        with torch.no_grad():
            for name, weights in self._best.items():
                parameters[name].copy_(weights)
        best = max(self.vertices, key=lambda vertex: vertex.evaluation)
        if (directory := run_directory(trainer)) is not None and trainer.is_global_zero:
            origin = {"method": "nelder-mead", "evaluation": self.evaluation, "best": dataclasses.asdict(best)}
            counts = {"vertices": len(self.vertices), "queries": self.queries, "converged": self._converged}
            write_thresholds(directory / "thresholds.yaml", best.thresholds, origin | counts)
        ended = "it converged" if self._converged else "the run is over before it converged"
        rank_zero_info(
            f"threshold search: {ended}; back to the policy of vertex {self.vertices.index(best)} of "
            f"{len(self.vertices)}, evaluation {best.evaluation:.4g}, {self.queries} queries"
        )
        if trainer.is_global_zero and not best.reached and (missed := self._missed(best)):
            logger.warning(
                "threshold search: the best vertex did not reach its thresholds (%s); what was measured is that "
                "policy, not those thresholds: raise multipliers.lr or share, or let it run longer",
                missed,
            )

    @property
    def _converged(self) -> bool:
        """Whether every further point is one that was measured."""
        return self._search is not None and self._known(self._search.point) is not None

    def _begin(self, experience: Experience, mixing: Constraints) -> None:
        """The start simplex, from the untrained policy's answers."""
        self._names = list(mixing.values)
        for name in self._names:
            values_N = experience.rewards[name]
            deviation = values_N[values_N.isfinite()].std().item()
            if not deviation > 0:
                raise ValueError(f"threshold search: all first answers are worth the same in reward {name!r}; drop it")
            self._sides[name] = self.side * deviation
        origin = tuple(mixing.values[name] for name in self._names)
        steps = [[self._sides[name] * (name == other) for name in self._names] for other in self._names]
        corners = [tuple(a + b for a, b in zip(origin, step, strict=True)) for step in steps]
        self._search = NelderMead([origin, *corners])

    def _measure(self, trainer: Trainer, experience: Experience, mixing: Constraints) -> None:
        """Ask the evaluation, tell the search, and go to its next point that is not known."""
        assert self._search is not None
        assert self._scorer is not None
        found_N = score(experience.rollouts, {"evaluation": self._scorer}, AllRanks(trainer))["evaluation"]
        self.queries += len(found_N)
        known_N = found_N[found_N.isfinite()]
        if not len(known_N):
            raise ValueError(
                f"threshold search: evaluation {self.evaluation} gave no finite number for {len(found_N)} answers"
            )
        error = known_N.std().item() / math.sqrt(len(known_N)) if len(known_N) > 1 else math.nan
        vertex = Vertex(
            self._named(self._search.point),
            dict(mixing.values),
            known_N.mean().item(),
            error,
            self._reached,
            self._iterations,
            trainer.global_step,
            self.queries,
        )
        if all(vertex.evaluation > other.evaluation for other in self.vertices):
            self._best = self._candidate
        self.vertices.append(vertex)
        self._candidate, self._measuring, self._iterations = {}, False, 0
        value = vertex.evaluation
        for _ in range(_REUSES):
            known = self._known(self._search.tell(-value))
            if known is None:
                break
            value = known.evaluation
        mixing.move(self._aim())
        self._write(trainer, vertex)

    def _aim(self) -> dict[str, float]:
        """The thresholds to train for: those of the best vertex once the search is over."""
        assert self._search is not None
        if self._converged:
            return max(self.vertices, key=lambda vertex: vertex.evaluation).thresholds
        return self._named(self._search.point)

    def _write(self, trainer: Trainer, vertex: Vertex) -> None:
        figures = {"search/evaluation": vertex.evaluation, "search/queries": float(self.queries)}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        if (directory := run_directory(trainer)) is not None and trainer.is_global_zero:
            lines = [json.dumps(dataclasses.asdict(each)) for each in self.vertices]
            write_whole(Path(directory) / "vertices.jsonl", "\n".join(lines) + "\n")

    def _named(self, point: Point) -> dict[str, float]:
        return dict(zip(self._names, point, strict=True))

    def _near(self, first: Mapping[str, float], second: Mapping[str, float]) -> bool:
        return all(abs(value - second[name]) <= self.tolerance * self._sides[name] for name, value in first.items())

    def _known(self, point: Point) -> Vertex | None:
        """The vertex measured near a point."""
        return next((each for each in self.vertices if self._near(each.thresholds, self._named(point))), None)

    def _missed(self, vertex: Vertex) -> str:
        """The rewards that were not near their thresholds, both numbers beside them."""
        asked, found = vertex.thresholds, vertex.values
        far = [name for name in self._names if not self._near({name: asked[name]}, {name: found[name]})]
        return ", ".join(f"{name} {found[name]:.4g} for {asked[name]:.4g}" for name in far)

    def _limit(self, trainer: Trainer, module: OnlineModule) -> int:
        """Iterations that a vertex may take.

        Errors: ValueError for a run without an end.
        """
        totals = []
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            totals.append(trainer.max_epochs * trainer.num_training_batches)
        if trainer.max_steps > 0:
            totals.append(trainer.max_steps / module.steps_per_iteration)
        if not totals or not math.isfinite(min(totals)):
            raise ValueError("threshold search shares a run out to vertices; set trainer.max_epochs or max_steps")
        return max(1, int(self.share * min(totals)))

    def state_dict(self) -> dict[str, Any]:
        """Everything, the weights of the best policy included."""
        return {
            "search": self._search and self._search.state_dict(),
            "sides": dict(self._sides),
            "vertices": [dataclasses.asdict(each) for each in self.vertices],
            "queries": self.queries,
            "iterations": self._iterations,
            "measuring": self._measuring,
            "reached": self._reached,
            "best": dict(self._best),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        search = state_dict["search"]
        self._search = search and NelderMead.resume(search)
        self._sides = dict(state_dict["sides"])
        self._names = list(self._sides)
        self.vertices = [Vertex(**each) for each in state_dict["vertices"]]
        self.queries, self._iterations = state_dict["queries"], state_dict["iterations"]
        self._measuring, self._reached = state_dict["measuring"], state_dict["reached"]
        self._best = dict(state_dict["best"])


def _parts(pl_module: LightningModule) -> tuple[OnlineModule, Constraints]:
    assert isinstance(pl_module, OnlineModule)
    assert isinstance(pl_module.mixing, Constraints)
    return pl_module, pl_module.mixing


def _learning(pl_module: LightningModule) -> dict[str, Tensor]:
    """Copies of the weights that learn."""
    return {name: each.detach().cpu().clone() for name, each in pl_module.named_parameters() if each.requires_grad}
