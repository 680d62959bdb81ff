"""Packs made of other packs are those that the slow packer makes of the sequences themselves."""

import dataclasses

import pytest
import torch

from grmlight.data.select import better_alone, followed_by
from tests.models.groups import mixed_groups, starts
from tests.reference.packing import pack_groups, shared_prompt

GROUPS = mixed_groups()
COMPARISONS = [[(1, 0)], [], [(0, 1)], [(0, 2), (3, 2), (0, 1)]]


def assert_same(found, expected):
    for field in dataclasses.fields(found):
        ours, slow = getattr(found, field.name), getattr(expected, field.name)
        if torch.is_tensor(slow):
            assert torch.equal(ours, slow), field.name
        else:
            assert ours == slow, field.name


@pytest.mark.parametrize("early", [0, 2], ids=["", "scored tokens in the prompt"])
def test_better_responses_alone(early):
    """Of pairs, one of which has a better second response, and of a ranking; prompts are shared as before."""
    groups = [group for group in GROUPS if len(group) > 1]
    begins, kept = starts(groups, early), [[1], [0], [0, 3]]
    batch = pack_groups(groups, begins, comparisons=[each for each in COMPARISONS if each])
    expected = pack_groups(
        [[group[place] for place in places] for group, places in zip(groups, kept, strict=True)],
        [[begin[place] for place in places] for begin, places in zip(begins, kept, strict=True)],
        comparisons=[[(0, 0)], [(0, 0)], [(0, 0), (1, 1), (0, 0)]],
        labels=[[0.5], [0.5], [0.5] * 3],
        prompts=[shared_prompt(group) for group in groups],
    )
    assert_same(better_alone(batch), expected)


def test_better_responses_of_pairs_are_the_slow_packer_s():
    groups = [GROUPS[0], GROUPS[2]]
    batch = pack_groups(groups, starts(groups), weights=[[2.0], [0.5]], counts=[1.0, 0.0], groups_in_step=7)
    expected = pack_groups(
        [group[:1] for group in groups],
        [each[:1] for each in starts(groups)],
        comparisons=[[(0, 0)], [(0, 0)]],
        labels=[[0.5], [0.5]],
        weights=[[2.0], [0.5]],
        counts=[1.0, 0.0],
        groups_in_step=7,
        prompts=[shared_prompt(group) for group in groups],
    )
    assert_same(better_alone(batch), dataclasses.replace(expected, row_C=batch.row_C))


def test_one_pack_behind_another():
    first, second = GROUPS[:2], GROUPS[2:]
    batch = pack_groups(first, starts(first))
    more = pack_groups(second, starts(second), comparisons=[[], []])
    expected = pack_groups(
        GROUPS, starts(GROUPS), comparisons=[[(0, 1)], [], [], []], counts=[1, 1, 0, 0], groups_in_step=2
    )
    assert_same(followed_by(batch, more), dataclasses.replace(expected, paired=False))


def test_references_follow_their_responses():
    batch = pack_groups(GROUPS, starts(GROUPS), comparisons=COMPARISONS)
    batch = dataclasses.replace(batch, reference_logps_N=-torch.arange(9.0))
    assert better_alone(batch).reference_logps_N.tolist() == [-1, -3, -5, -8]
    joined = followed_by(batch, pack_groups(GROUPS[:1], starts(GROUPS[:1])))
    assert joined.reference_logps_N.tolist() == [*(-float(each) for each in range(9)), 0, 0]
