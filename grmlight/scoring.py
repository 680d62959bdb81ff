"""Scoring pairs from a file with a trained model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from grmlight.data.labels import NONE, GroupLabels, group_labels
from grmlight.data.loader import GroupLoader
from grmlight.data.pairs import TextRow, text_rows
from grmlight.data.prepare import Prepared, prepare
from grmlight.data.texts import GroupError
from grmlight.evaluation.predictions import Prediction, predictions, write_predictions
from grmlight.export import load_options, model_folder
from grmlight.models import EnsembleModel, ExpertsModel, Scorer, load_reward_model
from grmlight.models.aggregation import Aggregation
from grmlight.models.judge import KIND, Judge
from grmlight.models.loading import read_kind


def score(
    model: Path,
    source: str,
    out: Path,
    pairs_per_batch: int = 64,
    aggregation: Aggregation | None = None,
    variance_weight: float | None = None,
) -> dict[str, Any]:
    """Write a JSON line a usable pair: `row`, `id`, `chosen`, `rejected`, `margin`; see `write_predictions`.

    Those of an ensemble have `disagreement` and `margin_disagreement` too. The file appears whole or not at all.

    Args:
        model: a model folder or a run directory; a judge's folder too.
        source: pairs, in any form that `grmlight prepare` takes.
        out: the file to write.
        pairs_per_batch: pairs of one forward; the scores do not depend on it.
        aggregation: of an ensemble, in place of what it was saved with.
        variance_weight: of an ensemble, in place of what it was saved with.

    Returns:
        What was found: see `Prepared`; of experts, rows of categories that the router never saw are noted.

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
    if isinstance(loaded, Judge):
        rows, report = text_rows(source)
        ids, found = {each.row: each.id for each in rows}, _judged(loaded, rows, pairs_per_batch, source)
    else:
        prepared = prepare(source, str(folder), load_options(folder))
        labels = _labels(loaded, prepared)
        ids = {entry["row"]: entry["id"] for entry in prepared.store.rows()}
        found, report = _scored(loaded, prepared, pairs_per_batch, labels), _with_unseen(prepared, labels)
    with _deterministic():
        write_predictions(out, found, ids)
    return report


def _load(folder: Path, aggregation: Aggregation | None, variance_weight: float | None) -> nn.Module:
    model = Judge.from_pretrained(folder) if read_kind(folder) == KIND else load_reward_model(folder)
    if isinstance(model, EnsembleModel):
        model.aggregate_by(aggregation or model.config.aggregation, variance_weight)
    elif aggregation is not None or variance_weight is not None:
        raise ValueError(f"{folder}: is no ensemble; drop aggregation and variance_weight")
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _judged(judge: Judge, rows: Sequence[TextRow], pairs_per_batch: int, source: str) -> Iterator[Prediction]:
    for start in tqdm(range(0, len(rows), pairs_per_batch), desc="judging", unit=" batches", delay=2):
        some = rows[start : start + pairs_per_batch]
        try:
            rewards = judge.score([each.group for each in some])
        except GroupError as error:
            raise error.of([each.row for each in some], source) from error
        for each, found in zip(some, rewards, strict=True):
            for better, worse in each.comparisons:
                places = None if (len(found), better, worse) == (2, 0, 1) else (better, worse)
                yield Prediction(each.row, found[better], found[worse], places)


def _labels(model: nn.Module, prepared: Prepared) -> GroupLabels | None:
    if not isinstance(model, ExpertsModel):
        return None
    config = model.experts_config
    return group_labels(prepared.store, prepared.source, config.tasks, strict=config.routing == "given")


def _with_unseen(prepared: Prepared, labels: GroupLabels | None) -> dict[str, Any]:
    """The report, which names the rows that the router could not have learned about."""
    if labels is None or not labels.unseen:
        return prepared.report
    rows = [row["row"] for row, task in zip(prepared.store.rows(), labels.task_G, strict=True) if task == NONE]
    return prepared.report | {"noted": prepared.report["noted"] | {"unseen_category": rows}}


def _scored(
    model: nn.Module, prepared: Prepared, pairs_per_batch: int, labels: GroupLabels | None
) -> Iterator[Prediction]:
    scorer = Scorer(model)
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
