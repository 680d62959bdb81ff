"""Nelder-Mead as questions and answers: which point next, and what it was worth."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypedDict

import numpy as np

Point = tuple[float, ...]
_Search = Generator[Point, float, None]


class SearchState(TypedDict):
    """What a search is: where it began, and all that it was told."""

    start: list[list[float]]
    values: list[float]


class NelderMead:
    """Minimizes a function of N numbers that is asked for one point at a time (Nelder and Mead 1965).

    Reflect by 1, expand by 2, contract by 0.5, shrink by 0.5; of equal values the older point is the better one. The
    order of the points is a pure function of the values told, so a search goes on from them alone.

    Args:
        start: the simplex, N + 1 points.

    Errors: ValueError for a simplex that has not N + 1 points or no volume.
    """

    def __init__(self, start: Sequence[Sequence[float]]) -> None:
        self._start = [tuple(map(float, point)) for point in start]
        size = len(self._start) - 1
        if size < 1 or any(len(point) != size for point in self._start):
            raise ValueError(f"a simplex in N dimensions is N + 1 points of N numbers, got {len(self._start)} points")
        if not _has_volume(self._start):
            raise ValueError("the start simplex is flat: its points lie in a plane; widen the start box")
        self.asked: list[Point] = []
        self.values: list[float] = []
        self._search = _search(self._start)
        self.point = next(self._search)

    @property
    def best(self) -> tuple[Point, float]:
        """The best point that was told, and its value."""
        place = min(range(len(self.values)), key=self.values.__getitem__)
        return self.asked[place], self.values[place]

    def tell(self, value: float) -> Point:
        """Say what `point` was worth; the next point."""
        self.asked.append(self.point)
        self.values.append(value)
        self.point = self._search.send(value)
        return self.point

    def state_dict(self) -> SearchState:
        """Where it began, and all that it was told."""
        return {"start": [list(point) for point in self._start], "values": list(self.values)}

    @classmethod
    def resume(cls, state: SearchState) -> NelderMead:
        """Go on from a state."""
        search = cls(state["start"])
        for value in state["values"]:
            search.tell(value)
        return search


def _search(start: Sequence[Point]) -> _Search:
    # No comprehension: in one of its own a generator could not ask.
    simplex: list[tuple[float, Point]] = []
    for point in start:
        value = yield point
        simplex.append((value, point))
    while True:
        simplex.sort(key=lambda vertex: vertex[0])
        simplex = yield from _step(simplex)


def _step(simplex: list[tuple[float, Point]]) -> Generator[Point, float, list[tuple[float, Point]]]:
    """One step of a sorted simplex."""
    *kept, (worst_value, worst) = simplex
    best_value, second_value = kept[0][0], kept[-1][0]
    centroid = tuple(sum(xs) / len(kept) for xs in zip(*(point for _, point in kept), strict=True))
    reflected = _along(centroid, worst, -1)
    value = yield reflected
    if value < best_value:
        expanded = _along(centroid, worst, -2)
        further = yield expanded
        return [*kept, (further, expanded) if further < value else (value, reflected)]
    if value < second_value:
        return [*kept, (value, reflected)]
    outside = value < worst_value
    contracted = _along(centroid, worst, -0.5 if outside else 0.5)
    closer = yield contracted
    if closer <= value if outside else closer < worst_value:
        return [*kept, (closer, contracted)]
    shrunk = [simplex[0]]
    for _, point in simplex[1:]:
        moved = _along(simplex[0][1], point, 0.5)
        shrunk.append(((yield moved), moved))
    return shrunk


def _along(origin: Point, point: Point, factor: float) -> Point:
    return tuple(a + factor * (b - a) for a, b in zip(origin, point, strict=True))


def _has_volume(points: Sequence[Point]) -> bool:
    edges = np.array(points[1:]) - np.array(points[0])
    lengths = np.linalg.norm(edges, axis=1)
    return bool((lengths > 0).all() and np.linalg.matrix_rank(edges / lengths[:, None]) == len(edges))
