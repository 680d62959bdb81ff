"""Curves: what is written is read, the summary by hand, and a picture that has every curve."""

import dataclasses
import json
import math

import pytest

from grmlight.evaluation.curves import CurvePoint, curves_of, plot_curves, read_curves, summarize, write_curves


def point(n=None, step=None, beta=None, kl=0.0, gold=0.0, proxy=0.0, error=0.1, **others):
    named = {"study": "s", "method": "m", "seed": 0} | others
    return CurvePoint(
        step=step, n=n, beta=beta, kl=kl, kl_estimator="analytic", proxy=proxy, gold=gold, standard_error=error, **named
    )


RISE_AND_FALL = [point(n=n, kl=k, gold=g, proxy=n) for n, k, g in [(1, 0.0, 0.0), (4, 4.0, 0.5), (16, 9.0, 0.2)]]


def test_a_file_gives_back_its_points(tmp_path):
    points = [*RISE_AND_FALL, point(step=3, beta=0.1, gold=math.nan, error=math.nan), point(n=2, low=-1.0, high=1.0)]
    write_curves(tmp_path / "curves.jsonl", points)
    found = read_curves(tmp_path / "curves.jsonl")
    assert [repr(each) for each in found] == [repr(each) for each in points]
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert rows[3]["gold"] is None
    assert list(rows[0])[:11] == "study method seed step n beta kl kl_estimator proxy gold standard_error".split()


@pytest.mark.parametrize("line", ["{", "[]", '{"study": "s"}', json.dumps(dataclasses.asdict(point()) | {"x": 1})])
def test_a_line_that_is_no_point_is_named(tmp_path, line):
    write_curves(tmp_path / "c.jsonl", [point(n=1)])
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"c\.jsonl: line 2 is no curve point"):
        read_curves(tmp_path / "c.jsonl")


def test_the_summary_by_hand():
    (found,) = summarize(reversed(RISE_AND_FALL))
    assert (found.peak, found.final, found.drop, found.d_at_peak, found.proxy_final) == (0.5, 0.2, 0.3, 2.0, 16)


def test_the_end_of_a_run_is_its_last_step_and_not_its_largest_kl():
    points = [point(step=1, kl=1.0, gold=0.1), point(step=2, kl=9.0, gold=0.4), point(step=3, kl=4.0, gold=0.3)]
    (found,) = summarize(points)
    assert found.final == 0.3
    assert found.drop == pytest.approx(0.1)
    assert found.d_at_peak == 3.0


def test_points_of_several_betas_are_a_curve_without_steps_and_several_with_them():
    ends = [point(beta=beta, kl=1 / beta, gold=beta) for beta in (0.1, 1.0)]
    assert [[each.beta for each in curve] for curve in curves_of(ends)] == [[1.0, 0.1]]
    assert summarize(ends)[0].beta is None
    runs = [point(beta=beta, step=step) for beta in (0.1, 1.0) for step in (1, 2)]
    assert [(found.beta, len(curve)) for found, curve in zip(summarize(runs), curves_of(runs), strict=True)] == [
        (0.1, 2),
        (1.0, 2),
    ]


def test_seeds_and_methods_are_curves_of_their_own():
    points = [point(n=1, seed=seed, method=method) for seed in (0, 1) for method in "ab"]
    assert len(summarize(points)) == 4


def test_points_without_gold_do_not_count():
    (found,) = summarize([*RISE_AND_FALL, point(n=64, kl=12.0, gold=math.nan, proxy=99.0)])
    assert (found.final, found.proxy_final) == (0.2, 99.0)
    (nothing,) = summarize([point(n=1, gold=math.nan)])
    assert math.isnan(nothing.peak)
    assert math.isnan(nothing.drop)


def test_a_negative_estimate_of_the_kl_is_at_no_distance():
    assert summarize([point(step=1, kl=-0.5, gold=1.0)])[0].d_at_peak == 0.0


def test_the_interval_is_the_given_one_or_a_normal_one():
    assert point(n=1, gold=1.0, error=0.5).interval == pytest.approx((0.02, 1.98))
    assert point(n=1, gold=1.0, error=0.5, low=0.3, high=1.2).interval == (0.3, 1.2)


def test_the_picture_has_both_lines_of_every_curve_and_a_panel_a_study(tmp_path):
    other = [dataclasses.replace(each, method="b") for each in RISE_AND_FALL]
    seeds = [dataclasses.replace(each, seed=1) for each in other]
    figure = plot_curves(
        [*RISE_AND_FALL, *other, *seeds, point(step=1, kl=-0.2, study="t")], tmp_path / "deep" / "curves.png"
    )
    first, second = figure.axes
    assert (len(first.lines), len(second.lines)) == (6, 2)
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["m", "b"]
    assert list(first.lines[0].get_ydata()) == [0.0, 0.5, 0.2]
    assert (tmp_path / "deep" / "curves.png").stat().st_size > 1000
    assert not list((tmp_path / "deep").glob(".grmlight*"))
    plot_curves([], tmp_path / "none.svg")
