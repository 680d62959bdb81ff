"""Recentering an ensemble's members while they train, on pairs of the training set that stay the same.

Every rank runs all of them, so the statistics need no communication and sharded models do not hang.
"""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as L
import numpy as np

from grmlight.data.batch import GroupBatch
from grmlight.data.loader import Deal, GroupLoader
from grmlight.data.prepare import Prepared
from grmlight.models import EnsembleModel
from grmlight.models.parallel import reshard


def recenter(trainer: L.Trainer, model: EnsembleModel, prepared: Prepared, pairs_at_once: int) -> None:
    """Recenter a model in training. Call it on every rank. Errors: see `EnsembleModel.recenter`.

    Args:
        trainer: tells device and precision.
        model: the model, sharded or not.
        prepared: the training pairs.
        pairs_at_once: pairs of one forward.
    """
    device = trainer.strategy.root_device
    with trainer.precision_plugin.forward_context():
        batches = reference_batches(prepared, model.config.reference_pairs, pairs_at_once)
        model.recenter(batch.to(device) for batch in batches)
    reshard(model)


def reference_batches(prepared: Prepared, pairs: int, pairs_at_once: int) -> Iterator[GroupBatch]:
    """Packs of so many pairs that lie evenly over a store; all of a store that has fewer."""
    count = len(prepared.store)
    loader = GroupLoader(prepared.store, pairs_at_once)
    chosen = np.arange(min(pairs, count), dtype=np.int64) * count // min(pairs, count)
    for start in range(0, len(chosen), pairs_at_once):
        groups = chosen[start : start + pairs_at_once]
        yield loader.batch(Deal(groups, np.ones(len(groups), dtype=np.float32), len(groups), 0, 0))
