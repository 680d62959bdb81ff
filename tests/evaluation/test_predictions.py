"""Predictions as records."""

import json

import torch

from grmlight.evaluation import predictions, write_predictions
from tests.batches import pair_batch
from tests.reference.packing import pack_groups


def test_records_are_ordered_by_row_and_without_fillers(tmp_path):
    found = predictions(torch.tensor([1.0, 0.5, 2.0, 3.0]), pair_batch(2, counts=[1.0, 1.0]))
    fillers = predictions(torch.tensor([9.0, 9.0]), pair_batch(1, counts=[0.0]))
    path = tmp_path / "scores.jsonl"
    assert write_predictions(path, reversed(found + fillers), {1: "a"}) == 2
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records[0] == {"row": 1, "id": "a", "chosen": 1.0, "rejected": 0.5, "margin": 0.5}
    assert records[1]["row"] == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.jsonl"]


def test_a_ranking_has_a_line_a_comparison_that_names_its_responses(tmp_path):
    groups = [[[1, 2], [1, 3]], [[1, 2], [1, 3], [1, 4]], [[1, 2], [1, 3], [1, 4]]]
    comparisons = [[(0, 1)], [(2, 0), (0, 1), (2, 1)], [(0, 1), (0, 2)]]
    batch = pack_groups(groups, comparisons=comparisons, counts=[1.0, 1.0, 0.0])
    found = predictions(torch.arange(8.0), batch)
    path = tmp_path / "scores.jsonl"
    assert write_predictions(path, found[::-1], {}) == 4
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == [
        {"row": 1, "id": "1", "chosen": 0.0, "rejected": 1.0, "margin": -1.0},
        {"row": 2, "id": "2", "chosen": 2.0, "rejected": 3.0, "margin": -1.0, "responses": [0, 1]},
        {"row": 2, "id": "2", "chosen": 4.0, "rejected": 2.0, "margin": 2.0, "responses": [2, 0]},
        {"row": 2, "id": "2", "chosen": 4.0, "rejected": 3.0, "margin": 1.0, "responses": [2, 1]},
    ]


def test_a_ranking_of_two_says_that_its_second_response_is_the_chosen_one():
    batch = pack_groups([[[1, 2], [1, 3]], [[1, 2], [1, 3]]], comparisons=[[(1, 0)], [(0, 1)]])
    assert [each.responses for each in predictions(torch.arange(4.0), batch)] == [(1, 0), None]
