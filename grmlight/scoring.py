"""Scoring pairs from a file with a trained model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm.auto import tqdm

from grmlight.data.labels import group_labels
from grmlight.data.loader import GroupLoader
from grmlight.data.prepare import Prepared, prepare
from grmlight.evaluation.predictions import Prediction, predictions, write_predictions
from grmlight.export import load_options, model_folder
from grmlight.models import ExpertsModel, Scorer, load_reward_model


def score(model: Path, source: str, out: Path, pairs_per_batch: int = 64) -> Prepared:
    """Write a JSON line a usable pair: `row`, `id`, `chosen`, `rejected`, `margin`.

    The file appears whole or not at all.

    Args:
        model: a model folder or a run directory.
        source: pairs, in any form that `grmlight prepare` takes.
        out: the file to write.
        pairs_per_batch: pairs of one forward; the scores do not depend on it.

    Errors: ValueError in one line for a missing model or unusable input.
    """
    if pairs_per_batch < 1:
        raise ValueError(f"pairs_per_batch must be at least 1, got {pairs_per_batch}")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; name a file for the scores")
    folder = model_folder(model)
    if not out.parent.is_dir():
        raise ValueError(f"{out}: its folder {out.parent} does not exist; make it first")
    prepared = prepare(source, str(folder), load_options(folder))
    ids = {entry["row"]: entry["id"] for entry in prepared.store.rows()}
    with _deterministic():
        write_predictions(out, _scored(folder, prepared, pairs_per_batch), ids)
    return prepared


def _scored(folder: Path, prepared: Prepared, pairs_per_batch: int) -> Iterator[Prediction]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_reward_model(folder).to(device)
    scorer, labels = Scorer(model), None
    if isinstance(model, ExpertsModel):
        config = model.experts_config
        labels = group_labels(prepared.store, prepared.source, config.tasks, strict=config.routing == "given")
    loader = GroupLoader(prepared.store, pairs_per_batch, labels=labels)
    for batch in tqdm(loader, desc="scoring", unit=" batches", delay=2):
        yield from predictions(scorer.score(batch.to(device)), batch)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
