"""Nelder-Mead against scipy's, point by point, and against known optima."""

import json

import numpy as np
import pytest

from grmlight.policy.constraints.nelder_mead import NelderMead


def bowl(x):
    return (x[0] - 1) ** 2 + 3 * (x[1] + 2) ** 2 + 0.5 * x[0] * x[1]


def rosenbrock(x):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def stairs(x):
    return float(np.floor(abs(x[0]) * 2) + np.floor(abs(x[1] - 1) * 2))


def line(x):
    return abs(x[0] - 3.3)


def ridge(x):
    return abs(x[0] - 1) + abs(x[1]) + abs(x[2] + 0.3) + 0.1 * x[0] * x[2]


FUNCTIONS = {
    bowl: [(0, 0), (1, 0), (0, 1)],
    rosenbrock: [(-1.2, 1), (-1, 1), (-1.2, 1.3)],
    stairs: [(3.0, 4.0), (3.5, 4.0), (3.0, 5.0)],
    line: [(0.0,), (0.5,)],
    ridge: [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)],
}


def run(function, start, queries):
    search = NelderMead(start)
    for _ in range(queries):
        search.tell(function(search.point))
    return search


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_it_asks_for_the_points_that_scipy_asks_for(function):
    optimize = pytest.importorskip("scipy.optimize")
    start, asked = FUNCTIONS[function], []

    def record(x):
        asked.append(tuple(map(float, x)))
        return function(x)

    options = {"initial_simplex": np.array(start, dtype=float), "maxfev": 60, "xatol": 0, "fatol": 0}
    optimize.minimize(record, start[0], method="Nelder-Mead", options=options)
    # Where values are the same, which of the points goes first is scipy's sort's own matter.
    queries = min(len(asked), 8 if function is stairs else 60)
    ours = run(function, start, queries).asked
    np.testing.assert_allclose(ours, asked[:queries], rtol=1e-9, atol=1e-12)


def test_it_finds_known_minima():
    assert run(rosenbrock, FUNCTIONS[rosenbrock], 300).best[0] == pytest.approx((1, 1), abs=1e-4)
    assert run(line, FUNCTIONS[line], 80).best[0] == pytest.approx((3.3,), abs=1e-6)


def test_the_first_steps_by_hand():
    # f = -(x + y), so (0, 0) is the worst: its reflection (1, 1) is the best so far, and (1.5, 1.5) better still.
    search = run(lambda x: -x[0] - x[1], [(0, 0), (1, 0), (0, 1)], 5)
    assert search.asked == [(0, 0), (1, 0), (0, 1), (1, 1), (1.5, 1.5)]
    # A hole at the start: reflected (1, -1) is no better than the worst, nor is its inside contraction, so all shrink.
    hole = {(0.0, 0.0): -9.0, (1.0, 0.0): 0.0, (0.0, 1.0): 1.0}
    search = run(lambda x: hole.get(x, 5.0), list(hole), 7)
    assert search.asked[3:] == [(1, -1), (0.25, 0.5), (0.5, 0), (0, 0.5)]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_it_goes_on_from_its_state_wherever_it_stopped(function):
    whole = run(function, FUNCTIONS[function], 40)
    for stop in (0, 1, 3, 5, 17):
        state = json.loads(json.dumps(run(function, FUNCTIONS[function], stop).state_dict()))
        search = NelderMead.resume(state)
        for _ in range(40 - stop):
            search.tell(function(search.point))
        assert search.asked == whole.asked
        assert search.best == whole.best


def test_flat_and_short_simplices_are_refused():
    for points in ([(0, 0), (1, 1), (2, 2)], [(0, 0), (0, 0), (0, 1)]):
        with pytest.raises(ValueError, match="flat"):
            NelderMead(points)
    with pytest.raises(ValueError, match="N \\+ 1 points"):
        NelderMead([(0, 0), (1, 0)])
