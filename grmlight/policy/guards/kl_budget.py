"""KLBudget: ends a run when its policy has gone far enough from where it began."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from grmlight.policy.guards.guard import Guard
from grmlight.policy.guards.kept import KeptCheckpoint, checkpoints_of
from grmlight.policy.kl import ESTIMATORS, Estimator, Measured

NAME = "below-budget"
"""Of the checkpoint that is kept."""


class KLBudget(Guard):
    """Stops the run at the first measurement whose KL to the reference exceeds a budget.

    The checkpoint of the last measurement within the budget is kept as `below-budget-STEP.ckpt` beside the run's own,
    and named when the run ends.

    Args:
        budget: nats an answer.
        estimator: what is compared with it: "k1", "k2" or "k3".

    Source: Gao et al. 2023 (arXiv 2210.10760), who measure over-optimization against this KL.
    """

    def __init__(self, budget: float, estimator: Estimator = "k1") -> None:
        super().__init__()
        if not budget > 0:
            raise ValueError(f"KLBudget: budget must be above 0 nats, got {budget}")
        if estimator not in ESTIMATORS:
            raise ValueError(f"KLBudget: estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
        self.budget, self.estimator = budget, estimator
        self.kept = KeptCheckpoint(NAME, "KLBudget")
        self.stopped = False
        self._kl = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach. Errors: ValueError as `Guard`, and if the run keeps no checkpoints."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            checkpoints_of(trainer, "KLBudget")

    def state_dict(self) -> dict[str, Any]:
        """The kept checkpoint, and whether the run is over."""
        return {"kept": self.kept.state_dict(), "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.kept.load_state_dict(state_dict["kept"])
        self.stopped = state_dict["stopped"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was stopped stays so."""
        if self.stopped:
            self.say(
                trainer,
                f"this run was stopped at its budget of {self.budget:g} nats; begin from {self.kept.path(trainer)}",
            )
            trainer.should_stop = True

    def look(self, trainer: Trainer, prompts: Sequence[Measured]) -> None:
        """Compare the mean over prompts with the budget; a KL that is not finite exceeds it."""
        self._kl = float(np.mean([each.means[self.estimator] for each in prompts]))
        if self._kl <= self.budget:
            self.kept.choose(trainer)
        else:
            self.stopped = True

    def keep(self, trainer: Trainer) -> None:
        """Keep this step if it is within the budget."""
        if self.kept.step == trainer.global_step and not self.stopped:
            self.kept.write(trainer)

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where the budget is exceeded."""
        if self.stopped:
            self.say(
                trainer,
                f"the KL to the reference is {self._kl:.4g} nats an answer, above the budget of {self.budget:g}; the "
                f"run ends, and its last checkpoint within the budget is {self.kept.path(trainer)}",
            )
            trainer.should_stop = True
