"""Rewards of pairs as records, one a comparison of the input."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from grmlight.data.batch import GroupBatch
from grmlight.data.files import write_whole
from grmlight.evaluation.ranks import from_all_ranks
from grmlight.evaluation.run_report import run_directory
from grmlight.models.aggregation import disagreement


class Prediction(NamedTuple):
    """The rewards of one comparison; a tuple, since Lightning takes no frozen dataclass from `predict_step`.

    Attributes:
        row: row of the input, from 1.
        chosen: reward of the chosen response.
        rejected: reward of the rejected response.
        responses: which responses of its row they are, from 0; None in a row of two whose first is the chosen one.
        disagreement: of an ensemble: population variance over the members, its mean over both responses.
        margin_disagreement: of an ensemble: population variance of the margin.
    """

    row: int
    chosen: float
    rejected: float
    responses: tuple[int, int] | None = None
    disagreement: float | None = None
    margin_disagreement: float | None = None

    @property
    def margin(self) -> float:
        """Chosen minus rejected."""
        return self.chosen - self.rejected


def predictions(
    rewards_N: Float[Tensor, " N"], batch: GroupBatch, rewards_KN: Float[Tensor, "K N"] | None = None
) -> list[Prediction]:
    """The predictions of a pack's comparisons; groups that only fill an empty share are left out.

    Args:
        rewards_N: the rewards.
        batch: the pack.
        rewards_KN: of an ensemble: those of its members.
    """
    columns = [batch.row_C, rewards_N[batch.better_C], rewards_N[batch.worse_C]]
    if rewards_KN is not None:
        better_KC, worse_KC = rewards_KN[:, batch.better_C], rewards_KN[:, batch.worse_C]
        columns.append((disagreement(better_KC) + disagreement(worse_KC)) / 2)
        columns.append(disagreement(better_KC - worse_KC))
    counted = batch.count_G[batch.group_C].tolist()
    rows = zip(*(column.tolist() for column in columns), _places(batch), strict=True)
    return [
        Prediction(row, better, worse, places, *spread)
        for (row, better, worse, *spread, places), count in zip(rows, counted, strict=True)
        if count
    ]


def _places(batch: GroupBatch) -> list[tuple[int, int] | None]:
    """For each comparison the places of its responses in their group, None where these are 0 and 1 of a group of two.

    So a pair has none, and a ranking of two whose second response is the chosen one says so.
    """
    sizes_G = batch.last_N.new_zeros(batch.groups).index_add(0, batch.group_N, torch.ones_like(batch.last_N))
    first_C = (sizes_G.cumsum(0) - sizes_G)[batch.group_C]
    columns = (sizes_G[batch.group_C], batch.better_C - first_C, batch.worse_C - first_C)
    found = zip(*(column.tolist() for column in columns), strict=True)
    return [None if (size, better, worse) == (2, 0, 1) else (better, worse) for size, better, worse in found]


def write_predictions(path: Path, found: Iterable[Prediction], ids: dict[int, str]) -> int:
    """Write a JSON line a comparison (`row`, `id`, `chosen`, `rejected`, `margin`) in the order of rows.

    Rows of more than two responses have a line a comparison, which adds `responses`: the places of the chosen and the
    rejected one in the row, from 0; so has a ranking of two whose second response is the chosen one. Those of an
    ensemble have `disagreement` and `margin_disagreement` too. The file appears whole or not at all. Returns the number
    of lines.
    """
    ordered = sorted(found, key=lambda prediction: (prediction.row, sorted(prediction.responses or ())))
    lines = []
    for each in ordered:
        record = {"row": each.row, "id": ids.get(each.row, str(each.row))}
        record |= {"chosen": each.chosen, "rejected": each.rejected, "margin": each.margin}
        if each.responses is not None:
            record["responses"] = list(each.responses)
        if each.margin_disagreement is not None:
            record |= {"disagreement": each.disagreement, "margin_disagreement": each.margin_disagreement}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_whole(path, "".join(lines))
    return len(ordered)


class PredictionWriter(Callback):
    """Writes the predictions of `predict` to `predictions-SET.jsonl` in the run directory."""

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the predictions of all ranks, and write them on one."""
        directory = run_directory(trainer)
        datamodule: Any = getattr(trainer, "datamodule", None)
        if datamodule is None:
            return
        outputs: Any = trainer.predict_loop.predictions
        sets = [outputs] if len(datamodule.test_sources) == 1 else outputs
        for name, packs in zip(datamodule.test_sources, sets, strict=True):
            found = from_all_ranks([prediction for pack in packs for prediction in pack])
            if trainer.is_global_zero:
                path = (directory or Path.cwd()) / f"predictions-{name}.jsonl"
                ids = {entry["row"]: entry["id"] for entry in datamodule.prepared[name].store.rows()}
                print(f"predictions: {path}, {write_predictions(path, found, ids)} pairs")
