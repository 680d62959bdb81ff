"""RegularizedModule: a preference loss, and the penalties that callbacks add to it.

The module pulls: regularizers register in `setup`, the module asks one forward for the signals they need, reads their
penalties and adds them. No hook edits a loss.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from grmlight.data.batch import GroupBatch
from grmlight.evaluation.disagreement import disagreement_terms
from grmlight.evaluation.pair_figures import pair_values
from grmlight.models.outputs import Outputs, Signal
from grmlight.module import GroupModule
from grmlight.regularizers.base import Ramp, Regularizer
from grmlight.training.meter import RESERVED
from grmlight.training.objective import Objective, Penalty, check_convex, objective
from grmlight.training.seeding import seed_dropout


class RegularizedModule(GroupModule):
    """Base of the modules on preference pairs. Subclasses build the model and give the preference loss.

    Args:
        options: see `GroupModule`.
    """

    own_terms: frozenset[str] = frozenset()
    """Terms of the loss that a subclass adds, whose names no regularizer may have."""

    def __init__(self, *options: Any, **named: Any) -> None:
        super().__init__(*options, **named)
        self._regularizers: list[Regularizer] = []
        self._entering: set[str] = set()

    @abstractmethod
    def preference(self, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, " G"]:
        """The preference loss of each group."""

    def add_regularizer(self, regularizer: Regularizer) -> None:
        """Take in a regularizer; called in its `setup`. Names are unique; the module's own terms have theirs."""
        if regularizer in self._regularizers:
            return
        attached = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set in its __init__
        self._regularizers = [other for other in self._regularizers if other in attached]
        self._entering &= {other.name for other in self._regularizers}
        taken = {*RESERVED, *self.own_terms, *(other.name for other in self._regularizers)}
        if regularizer.name in taken:
            raise ValueError(
                f"two terms of the loss are named {regularizer.name!r}; give one of the regularizers another `name`"
            )
        self._regularizers.append(regularizer)
        if regularizer.active:
            self._entering.add(regularizer.name)
        if regularizer.active and not regularizer.per_group:
            rank_zero_info(
                f"{regularizer.name} is a penalty of whole packs: it is not exact, but depends on how steps are cut"
            )

    @property
    def regularizers(self) -> list[Regularizer]:
        """The regularizers that enter the loss, in the order of the callbacks; settled before the model is built."""
        return [regularizer for regularizer in self._regularizers if regularizer.name in self._entering]

    @property
    def signals(self) -> frozenset[Signal]:
        """What the one forward must compute."""
        return frozenset().union(*(regularizer.needs for regularizer in self.regularizers))

    def objective(self, outputs: Outputs, batch: GroupBatch) -> Objective:
        """The loss of a pack and its terms, at the weights of the current step.

        Each term of an ensemble is the mean over its members of what the member alone would have.
        """
        preference_G = _mean([self.preference(member, batch) for member in outputs.members or (outputs,)])
        return objective(preference_G, self.penalties(outputs, batch), batch)

    def penalties(self, outputs: Outputs, batch: GroupBatch) -> dict[str, Penalty]:
        """What is added to the preference loss, by name."""
        members, penalties = outputs.members or (outputs,), {}
        for each in self.regularizers:
            values = _mean([each.penalty(member, batch) for member in members])
            expected = (batch.groups,) if each.per_group else ()
            if values.shape != expected:
                raise ValueError(
                    f"{each.name}: penalty returned shape {tuple(values.shape)}, expected {expected}: one value a "
                    "group, or a single one where per_group is False"
                )
            penalties[each.name] = Penalty(values, each.weight_at(self.global_step), each.mixing == "convex")
        return penalties

    def figures(self, outputs: Outputs, batch: GroupBatch) -> dict[str, Tensor]:
        """What is logged beside the loss and its terms: a training pack's share of the step's mean, by name.

        The names are in `grmlight.evaluation.pair_figures.NO_TERMS`.
        """
        return disagreement_terms(outputs, batch)

    def training_step(self, batch: GroupBatch, batch_idx: int) -> Tensor:
        """The loss of one pack, scaled so that Lightning's and the strategy's means give the step's (contract 4)."""
        packs = self.trainer.accumulate_grad_batches
        if batch.packs != packs:
            raise ValueError("accumulate_grad_batches changed during the run; drop the callback that schedules it")
        seed_dropout(self.device, self.seed, self.global_step, batch.micro_batch, self.global_rank)
        with self._memory_errors():
            outputs = self(batch, self.signals)
            result = self.objective(outputs, batch)
        terms = {"loss": result.loss.detach(), **result.terms, **self.figures(outputs, batch)}
        values = pair_values(outputs.rewards_N, batch)
        self.meter.add(batch, self.global_step, terms, values, attention=self._flops is not None)
        return result.loss * (self.trainer.world_size * packs)

    def finish_figures(self, figures: dict[str, float]) -> dict[str, float]:
        """With the weights of the last step."""
        step = max(self.global_step - 1, 0)
        return super().finish_figures(figures) | {
            f"train/{each.name}_weight": each.weight_at(step) for each in self.regularizers
        }

    def on_train_start(self) -> None:
        """Go on from a checkpoint, if there is one.

        Errors: as `GroupModule`, and ValueError if convex weights will exceed 1.
        """
        self._check_weights()
        super().on_train_start()

    def _check_weights(self) -> None:
        """Convex weights change in straight lines, so their sum is largest where a ramp begins or ends."""
        convex = [regularizer for regularizer in self.regularizers if regularizer.mixing == "convex"]
        for step in {0, *(each.weight.steps for each in convex if isinstance(each.weight, Ramp))}:
            check_convex({regularizer.name: regularizer.weight_at(step) for regularizer in convex})


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(dim=0)
