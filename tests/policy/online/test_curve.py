"""Curve records of a run's logged lines."""

import math

import pytest

from grmlight.evaluation.curves import summarize
from grmlight.policy.online.curve import run_curve

LINES = """rollout/kl,rollout/kl_k3,rollout/kl_coefficient,rollout/score,rollout/watch_gold,step,train/loss
0.1,0.11,0.02,1.0,0.5,4,0.1
,,,,,4,
0.4,0.41,0.02,2.0,0.25,8,0.2
"""


def test_lines_become_points(tmp_path):
    (tmp_path / "metrics.csv").write_text(LINES)
    points = run_curve(tmp_path / "metrics.csv", "study", 3, gold="rollout/watch_gold", estimator="k3")
    assert [(p.step, p.kl, p.kl_estimator, p.beta, p.proxy, p.gold, p.seed, p.method) for p in points] == [
        (4, 0.11, "k3", 0.02, 1.0, 0.5, 3, "online score"),
        (8, 0.41, "k3", 0.02, 2.0, 0.25, 3, "online score"),
    ]


def test_figures_that_were_not_logged_are_named(tmp_path):
    (tmp_path / "metrics.csv").write_text(LINES)
    with pytest.raises(ValueError, match="logged no rollout/watch_silver"):
        run_curve(tmp_path / "metrics.csv", "study", 0, gold="rollout/watch_silver")


def test_a_coefficient_that_moves_makes_no_curves_of_its_own(tmp_path):
    (tmp_path / "metrics.csv").write_text(LINES.replace("0.41,0.02", "0.41,0.03"))
    points = run_curve(tmp_path / "metrics.csv", "study", 0, gold="rollout/watch_gold")
    assert [point.beta for point in points] == [None, None]
    (summary,) = summarize(points)
    assert (summary.peak, summary.drop) == (0.5, 0.25)


def test_a_figure_that_was_not_finite_is_unknown(tmp_path):
    (tmp_path / "metrics.csv").write_text(LINES.replace("2.0,0.25", "2.0,"))
    points = run_curve(tmp_path / "metrics.csv", "study", 0, gold="rollout/watch_gold")
    assert points[0].gold == 0.5
    assert math.isnan(points[1].gold)
    (tmp_path / "metrics.csv").write_text(LINES.replace("2.0,0.25", "2.0,much"))
    with pytest.raises(ValueError, match="step 8: rollout/watch_gold is 'much', which is no number"):
        run_curve(tmp_path / "metrics.csv", "study", 0, gold="rollout/watch_gold")
