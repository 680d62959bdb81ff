"""Predictions as records."""

import json

import torch

from grmlight.evaluation import predictions, write_predictions
from tests.batches import pair_batch


def test_records_are_ordered_by_row_and_without_fillers(tmp_path):
    found = predictions(torch.tensor([1.0, 0.5, 2.0, 3.0]), pair_batch(2, counts=[1.0, 1.0]))
    fillers = predictions(torch.tensor([9.0, 9.0]), pair_batch(1, counts=[0.0]))
    path = tmp_path / "scores.jsonl"
    assert write_predictions(path, reversed(found + fillers), {1: "a"}) == 2
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records[0] == {"row": 1, "id": "a", "chosen": 1.0, "rejected": 0.5, "margin": 0.5}
    assert records[1]["row"] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.jsonl"]
