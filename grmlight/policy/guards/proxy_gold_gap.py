"""ProxyGoldGap: ends a run when its reward rises and what the reward stands for falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from grmlight.policy.guards.guard import Guard
from grmlight.policy.guards.kept import KeptCheckpoint, checkpoints_of, roll_back
from grmlight.policy.kl import Measured

NAME = "best-gold"
"""Of the checkpoint that is kept."""

Action = Literal["stop", "rollback"]


class ProxyGoldGap(Guard):
    """Watches the proxy against a second reward: gold, or a held-out ensemble, whichever is `SampledKL`'s `gold`.

    They have parted if, compared with the measurement of the highest gold so far, on the same prompts, the mean gold is
    lower by more than `errors` standard errors of the difference, and the mean proxy is not lower. If both fall, that
    is no over-optimization, and the guard waits. After `patience` such measurements in a row the run ends.

    The checkpoint of the highest gold is kept as `best-gold-STEP.ckpt` beside the run's own.

    Args:
        errors: standard errors (paired over prompts) that the gold must fall by.
        patience: measurements in a row.
        action: "stop" leaves the weights as they are, "rollback" gives them, and the optimizer, back the state of the
            kept checkpoint before the run ends.
    """

    needs = ("proxy", "gold")

    def __init__(self, errors: float = 2.0, patience: int = 2, action: Action = "stop") -> None:
        super().__init__()
        if errors < 0 or patience < 1:
            raise ValueError(f"ProxyGoldGap: errors must be 0 or more and patience 1 or more, got {errors}, {patience}")
        if action not in ("stop", "rollback"):
            raise ValueError(f"ProxyGoldGap: action must be 'stop' or 'rollback', got {action!r}")
        self.errors, self.patience, self.action = errors, patience, action
        self.best: dict[str, Any] = {}
        self.kept = KeptCheckpoint(NAME, "ProxyGoldGap")
        self.parted = 0
        self.stopped = False
        self._told = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach. Errors: ValueError as `Guard`, and if the run keeps no checkpoints."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            checkpoints_of(trainer, "ProxyGoldGap")

    def state_dict(self) -> dict[str, Any]:
        """The best measurement and its checkpoint, how often in a row they were parted, and whether the run is over."""
        kept = self.kept.state_dict()
        return {"best": dict(self.best), "kept": kept, "parted": self.parted, "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.kept.load_state_dict(state_dict["kept"])
        self.best, self.parted, self.stopped = state_dict["best"], state_dict["parted"], state_dict["stopped"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was stopped stays so."""
        if self.stopped:
            self.say(
                trainer, f"this run was stopped, as proxy and gold had parted; begin from {self.kept.path(trainer)}"
            )
            trainer.should_stop = True

    def look(self, trainer: Trainer, prompts: Sequence[Measured]) -> None:
        """Compare with the best measurement. Prompts that a reward could not score in both are left out."""
        means = {each.number: (each.means["proxy"], each.means["gold"]) for each in prompts}
        known = {number: pair for number, pair in means.items() if all(map(math.isfinite, pair))}
        if not known:
            self.warn(trainer, "no prompt has a finite proxy and gold; this measurement is passed over")
            return
        if not self.best:
            self._become_best(trainer, known)
            return
        shared = [number for number in self.best["prompts"] if number in known]
        before = np.array([self.best["values"][self.best["prompts"].index(number)] for number in shared]).reshape(-1, 2)
        difference = np.array([known[number] for number in shared]).reshape(-1, 2) - before
        (proxy, gold), error = difference.mean(0) if shared else (0.0, 0.0), _standard_error(difference[:, 1])
        self.record(trainer, {"proxy_since_best": float(proxy), "gold_since_best": float(gold), "gold_error": error})
        if gold > 0:
            self._become_best(trainer, known)
            return
        self.parted = self.parted + 1 if proxy >= 0 and -gold > self.errors * error else 0
        self.stopped = self.parted >= self.patience
        self._told = (
            f"since step {self.best['step']} the proxy has changed by {proxy:+.4g} and the gold by {gold:+.4g} "
            f"(standard error {error:.2g}, {len(shared)} prompts)"
        )

    def _become_best(self, trainer: Trainer, known: dict[int, tuple[float, float]]) -> None:
        self.parted = 0
        self.kept.choose(trainer)
        self.best = {
            "step": trainer.global_step,
            "prompts": list(known),
            "values": [list(pair) for pair in known.values()],
        }

    def keep(self, trainer: Trainer) -> None:
        """Keep this step if it is the best."""
        if self.kept.step == trainer.global_step:
            self.kept.write(trainer)

    def act(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop, and roll back if that is asked for, once they have parted for long enough."""
        if not self.stopped:
            return
        path = self.kept.path(trainer)
        assert path is not None
        if self.action == "rollback":
            roll_back(trainer, pl_module, path)
        done = "the weights are those of" if self.action == "rollback" else "the best checkpoint is"
        self.say(trainer, f"proxy and gold have parted: {self._told}; the run ends, and {done} {path}")
        trainer.should_stop = True


def _standard_error(values: np.ndarray) -> float:
    """Of a mean; infinite for a single value, which shows nothing."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf
