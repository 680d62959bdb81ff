"""Scorer: the one way to get rewards out of a model outside training."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from grmlight.data.batch import GroupBatch
from grmlight.models.modes import evaluating
from grmlight.models.outputs import Outputs


class Scorer:
    """Scores batches in eval mode, whatever mode the model is in.

    A response's reward does not depend on what else is in its batch, nor on order or padding (1e-5 in float32).

    Args:
        model: a `RewardModel`, or what wraps one and is called alike.

    Attributes:
        sharded: whether any of the model is spread over ranks (FSDP2), which must then score equally often.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sharded = any(isinstance(part, FSDPModule) for part in model.modules())

    def score(self, batch: GroupBatch) -> Float[Tensor, " N"]:
        """One reward a response, float32, on the CPU."""
        return self.outputs(batch).rewards_N.float().cpu()

    def outputs(self, batch: GroupBatch) -> Outputs:
        """All that the model says of a batch without being asked for signals, where the model is."""
        device = next(self.model.parameters()).device
        # What a sharded model gathers within inference mode could not be trained with afterwards.
        with torch.no_grad() if self.sharded else torch.inference_mode(), evaluating(self.model):
            return self.model(batch.to(device), frozenset())
