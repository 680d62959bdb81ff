"""How far members are apart, against loops over plain numbers."""

import random
import statistics

import pytest
import torch

from grmlight.evaluation.disagreement import DISAGREEMENT, Disagreement, disagreement_terms
from grmlight.evaluation.metrics import pair_metrics
from grmlight.evaluation.predictions import predictions, write_predictions
from grmlight.models.outputs import Outputs
from tests.batches import outputs_of, pair_batch

DRAW = random.Random(1)


def members_of(pairs, members=4):
    rows = [[DRAW.gauss(0, 1) for _ in range(2 * pairs)] for _ in range(members)]
    rewards_KN = torch.tensor(rows, dtype=torch.float64)
    return rows, Outputs(rewards_KN.mean(0), rewards_KN=rewards_KN)


def by_hand(rows, counts):
    """Mean over the pairs that count of the variances of their responses, and of their margins."""
    rewards, margins = [], []
    for pair, count in enumerate(counts):
        if count:
            better, worse = ([row[2 * pair + side] for row in rows] for side in (0, 1))
            rewards += [statistics.pvariance(better), statistics.pvariance(worse)]
            margins.append(statistics.pvariance([b - w for b, w in zip(better, worse, strict=True)]))
    return statistics.fmean(rewards), statistics.fmean(margins)


def test_the_metric_is_the_mean_over_the_set_without_fillers():
    metric, all_rows, all_counts = Disagreement(), [[] for _ in range(4)], []
    for counts in ([1.0, 1.0, 1.0], [1.0, 0.0]):
        rows, outputs = members_of(len(counts))
        metric.update(outputs, pair_batch(len(counts), counts=counts))
        all_rows = [before + row for before, row in zip(all_rows, rows, strict=True)]
        all_counts += counts
    found = [float(value) for value in metric.compute().values()]
    assert found == pytest.approx(by_hand(all_rows, all_counts), rel=1e-6)


def test_a_packs_terms_are_its_share_of_the_step():
    rows, outputs = members_of(3)
    terms = disagreement_terms(outputs, pair_batch(3, counts=[1, 1, 0], groups_in_step=8))
    expected = [2 / 8 * value for value in by_hand(rows, [1, 1, 0])]
    assert [float(terms[name]) for name in DISAGREEMENT] == pytest.approx(expected, rel=1e-6)


def test_a_single_model_disagrees_with_nobody():
    assert disagreement_terms(outputs_of([1.0, 2.0]), pair_batch(1)) == {}
    metrics = pair_metrics("val/")
    metrics.update(outputs_of([1.0, 2.0]), pair_batch(1))
    assert not {f"val/{name}" for name in DISAGREEMENT} & metrics.compute().keys()


def test_scores_of_an_ensemble_say_how_far_its_members_are_apart(tmp_path):
    rows, outputs = members_of(2)
    batch = pair_batch(2)
    found = predictions(outputs.rewards_N, batch, outputs.rewards_KN)
    for pair, each in enumerate(found):
        wanted = by_hand([row[2 * pair : 2 * pair + 2] for row in rows], [1])
        assert (each.disagreement, each.margin_disagreement) == pytest.approx(wanted, rel=1e-6)
        assert each.chosen == pytest.approx(statistics.fmean(row[2 * pair] for row in rows))
    write_predictions(tmp_path / "ensemble.jsonl", found, {})
    write_predictions(tmp_path / "single.jsonl", predictions(outputs.rewards_N, batch), {})
    assert '"margin_disagreement"' in (tmp_path / "ensemble.jsonl").read_text()
    assert "disagreement" not in (tmp_path / "single.jsonl").read_text()
