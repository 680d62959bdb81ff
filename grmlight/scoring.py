"""Scoring pairs from a file with a trained model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from grmlight.data.labels import group_labels
from grmlight.data.loader import GroupLoader
from grmlight.data.prepare import Prepared, prepare
from grmlight.evaluation.predictions import Prediction, predictions, write_predictions
from grmlight.export import load_options, model_folder
from grmlight.models import EnsembleModel, ExpertsModel, Scorer, load_reward_model
from grmlight.models.aggregation import Aggregation

logger = logging.getLogger("grmlight")


def score(
    model: Path,
    source: str,
    out: Path,
    pairs_per_batch: int = 64,
    aggregation: Aggregation | None = None,
    variance_weight: float | None = None,
) -> Prepared:
    """Write a JSON line a usable pair: `row`, `id`, `chosen`, `rejected`, `margin`.

    Those of an ensemble have `disagreement` and `margin_disagreement` too. The file appears whole or not at all.

    Args:
        model: a model folder or a run directory.
        source: pairs, in any form that `grmlight prepare` takes.
        out: the file to write.
        pairs_per_batch: pairs of one forward; the scores do not depend on it.
        aggregation: of an ensemble, in place of what it was saved with.
        variance_weight: of an ensemble, in place of what it was saved with.

    Errors: ValueError in one line for a missing model or unusable input.
    """
    if pairs_per_batch < 1:
        raise ValueError(f"pairs_per_batch must be at least 1, got {pairs_per_batch}")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; name a file for the scores")
    folder = model_folder(model)
    if not out.parent.is_dir():
        raise ValueError(f"{out}: its folder {out.parent} does not exist; make it first")
    loaded = _load(folder, aggregation, variance_weight)
    prepared = prepare(source, str(folder), load_options(folder))
    ids = {entry["row"]: entry["id"] for entry in prepared.store.rows()}
    with _deterministic():
        write_predictions(out, _scored(loaded, prepared, pairs_per_batch), ids)
    return prepared


def _load(folder: Path, aggregation: Aggregation | None, variance_weight: float | None) -> nn.Module:
    model = load_reward_model(folder)
    if isinstance(model, EnsembleModel):
        model.aggregate_by(aggregation or model.config.aggregation, variance_weight)
    elif aggregation is not None or variance_weight is not None:
        raise ValueError(f"{folder}: is no ensemble; drop aggregation and variance_weight")
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _scored(model: nn.Module, prepared: Prepared, pairs_per_batch: int) -> Iterator[Prediction]:
    scorer, labels = Scorer(model), None
    if isinstance(model, ExpertsModel):
        config = model.experts_config
        labels = group_labels(prepared.store, prepared.source, config.tasks, strict=config.routing == "given")
        if unseen := labels.describe_unseen():
            logger.warning("%s: %s", prepared.source, unseen)
    loader = GroupLoader(prepared.store, pairs_per_batch, labels=labels)
    for batch in tqdm(loader, desc="scoring", unit=" batches", delay=2):
        found = scorer.outputs(batch)
        members_KN = None if found.rewards_KN is None else found.rewards_KN.float().cpu()
        yield from predictions(found.rewards_N.float().cpu(), batch, members_KN)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
