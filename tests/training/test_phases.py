"""The split of pairs between phases."""

import numpy as np
import pytest

from grmlight.data.labels import GroupLabels
from grmlight.training.phases import Phase, Phases, make_course

TASKS = {"chat": ["wit", "calm"], "code": ["style"]}


def labels(task, capability):
    return GroupLabels(np.array(task), np.array(capability), {})


@pytest.fixture
def found():
    """50 chats and 30 pairs of code without a capability, 12 labeled ones between."""
    task = [0] * 50 + [1] * 30 + [0, 0, 1] * 4
    capability = [-1] * 80 + [0, 1, 0] * 4
    order = np.random.default_rng(0).permutation(len(task))
    return labels(np.array(task)[order], np.array(capability)[order])


def test_the_first_phase_has_its_share_of_each_task(found):
    """The release trained on 30% where the paper says 60%."""
    course = make_course(Phases(task=Phase(epochs=2)), found, TASKS, pairs_per_step=10, seed=1)
    task, experts, mixture = (leg.groups for leg in course.legs)
    assert [(found.task_G[task] == number).sum() for number in (0, 1)] == [30, 18]
    assert [(found.task_G[mixture] == number).sum() for number in (0, 1)] == [20, 12]
    assert sorted([*task, *experts, *mixture]) == list(range(92))
    assert (found.capability_G[experts] >= 0).all()
    assert [leg.steps for leg in course.legs] == [10, 2, 4]
    other = make_course(Phases(), found, TASKS, pairs_per_step=10, seed=2)
    assert set(other.legs[0].groups) != set(task)
    same = make_course(Phases(), found, TASKS, pairs_per_step=7, seed=1)
    assert np.array_equal(same.legs[0].groups, task)


def test_what_has_nothing_to_learn_from_is_refused(found):
    def refused(message, task=found.task_G, capability=found.capability_G, tasks=TASKS):
        with pytest.raises(ValueError, match=message):
            make_course(Phases(), labels(task, capability), tasks, 10, 0)

    refused("task 'poem' has no pair without", tasks=TASKS | {"poem": ["rhyme"]})
    refused("'code' has no pair labeled for speed", tasks=TASKS | {"code": ["style", "speed"]})
    refused("phase 'mixture': task 'chat'", [0, 0, 0, 1], [-1, 0, 1, -1])
