"""A course of phases: every phase on its own pairs, every pass over all of them, resumable at each step."""

import json

import pytest

from grmlight.data import PrepareOptions, prepare
from grmlight.data.course import Course, CourseLoader, Leg, shuffled


@pytest.fixture
def store(tmp_path, byte_tokenizer, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"why {i}?", "chosen": "so " * (1 + i % 5), "rejected": f"not {i}"} for i in range(23)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare(str(path), str(byte_tokenizer), PrepareOptions()).store


@pytest.fixture
def course():
    order = shuffled(23, 1)
    return Course([Leg("one", order[:9], 6), Leg("two", order[9:20], 2), Leg("three", order[20:], 3)])


def dealt(store, course, rank=0, ranks=1, packs=1, skip=0):
    loader = CourseLoader(course, store, 4, rank=rank, ranks=ranks, packs=packs, seed=5)
    if skip:
        loader.load_state_dict(loader.state_dict() | {"steps": skip})
    return list(loader.deals())


def test_each_phase_goes_through_its_own_pairs(store, course):
    steps = [set(deal.groups[deal.counts > 0].tolist()) for deal in dealt(store, course)]
    assert len(steps) == course.steps == 11
    one, two, three = (set(leg.groups.tolist()) for leg in course.legs)
    # Nine pairs, four a step: three steps a pass.
    assert set.union(*steps[:3]) == set.union(*steps[3:6]) == one
    assert sum(map(len, steps[:3])) == 9
    assert steps[0] != steps[3], "another pass has another order"
    assert steps[6] | steps[7] < two
    assert [len(step) for step in steps[6:8]] == [4, 4], "a phase ends after its steps, within a pass"
    assert steps[8:] == [three] * 3


def test_a_step_knows_its_phase(course):
    assert [course.at(step).name for step in (0, 5, 6, 7, 8, 10, 11)] == ["one", "one", "two", "two", *["three"] * 3]
    assert [(course.start(name), course.end(name)) for name in ("one", "two", "three")] == [(0, 6), (6, 8), (8, 11)]


@pytest.mark.parametrize("skip", [1, 3, 6, 7, 10])
def test_resuming_goes_on_with_the_same_packs(skip, store, course):
    whole, rest = dealt(store, course, packs=2), dealt(store, course, packs=2, skip=skip)
    assert [deal.groups.tolist() for deal in rest] == [deal.groups.tolist() for deal in whole[2 * skip :]]
    assert [deal.step for deal in rest] == [deal.step for deal in whole[2 * skip :]]


def test_ranks_share_each_step(store, course):
    alone = dealt(store, course)
    both = zip(*(dealt(store, course, rank=rank, ranks=2) for rank in range(2)), strict=True)
    for deal, shares in zip(alone, both, strict=True):
        counted = sorted(group for share in shares for group in share.groups[share.counts > 0].tolist())
        assert counted == sorted(deal.groups.tolist())
        assert {share.groups_in_step for share in shares} == {len(deal.groups)}


def test_another_course_does_not_resume(store, course):
    state = CourseLoader(course, store, 4, seed=5).state_dict()
    longer = Course([*course.legs[:2], Leg("three", course.legs[2].groups, 4)])
    with pytest.raises(ValueError, match="written with phases="):
        CourseLoader(longer, store, 4, seed=5).load_state_dict(state)
