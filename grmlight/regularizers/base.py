"""Regularizer: a callback that adds a penalty to the loss.

The callback says what it needs and how large its penalty is; the LightningModule computes, weights and adds it. So a
penalty never owns a model, never touches parameters, and works alike on one CPU and on many GPUs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from grmlight.data.batch import GroupBatch
from grmlight.models.outputs import Outputs, Signal

Mixing = Literal["convex", "additive"]


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A weight that goes from `start` to `end` in a straight line over `steps` optimizer steps, then stays."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Ramp.steps must be at least 1, got {self.steps}")

    def at(self, step: int) -> float:
        """The weight at an optimizer step."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


class Regularizer(Callback):
    """A penalty added to the loss, as a callback. Subclasses write `penalty` and state what it needs.

    Args:
        weight: factor of the penalty, read at every step, or a `Ramp`. 0 from the start adds no term and asks for no
            signal; a ramp that reaches 0 multiplies.
        mixing: "convex" takes the weight from the preference loss (`(1 - weight) preference + weight penalty`),
            "additive" leaves that loss whole.
        name: unique among the regularizers of a run; names the term in logs and the callback's state.

    Attributes:
        needs: the signals that the penalty reads from the outputs.
        per_group: False for a penalty that is no sum over groups; it returns one value a pack, and is not exact: it
            depends on how a step is cut into packs.
    """

    needs: frozenset[Signal] = frozenset()
    per_group: bool = True

    def __init__(self, weight: float | Ramp, mixing: Mixing, name: str) -> None:
        super().__init__()
        for value in (weight.start, weight.end) if isinstance(weight, Ramp) else (weight,):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: weight must be finite and at least 0, got {value}")
        self.weight = weight
        self._configured = weight
        self.mixing: Mixing = mixing
        self.name = name

    def penalty(self, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, " G"]:
        """One unweighted value a group (or one a pack where `per_group` is False), differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must define penalty(outputs, batch)")

    def weight_at(self, step: int) -> float:
        """The weight at an optimizer step."""
        return self.weight.at(step) if isinstance(self.weight, Ramp) else self.weight

    @property
    def active(self) -> bool:
        """Whether the penalty enters the loss at all."""
        return isinstance(self.weight, Ramp) or self.weight > 0

    @property
    def state_key(self) -> str:
        """Two regularizers of one class keep their states apart by name."""
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the module, before it builds its model, that this penalty takes part."""
        add = getattr(pl_module, "add_regularizer", None)
        if add is None:
            raise ValueError(
                f"{self.name}: {type(pl_module).__name__} takes no regularizers: they are for modules on pairs; leave "
                "it out"
            )
        add(self)

    def state_dict(self) -> dict[str, Any]:
        """A plain weight, so that one changed during a run goes on after a resume; a ramp follows from the step."""
        return {} if isinstance(self.weight, Ramp) else {"weight": self.weight, "configured": self._configured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the saved weight, unless the run is now configured with another one."""
        if state_dict.get("configured") == self._configured:
            self.weight = state_dict["weight"]
        elif state_dict:
            rank_zero_info(f"{self.name}: the checkpoint's weight {state_dict['weight']:g} gives way to {self.weight}")
