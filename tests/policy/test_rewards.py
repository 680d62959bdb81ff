"""Rewards are opened by folder, by class and by function; whatever is none of these is one line."""

import pytest

from grmlight.data.texts import TextGroup
from grmlight.lab import GoldReward, world_files
from grmlight.policy.rewards import open_reward

PROMPT = "tell two animals color"


def test_a_class_and_a_function_by_their_paths():
    group = TextGroup(PROMPT, ("cat red , dog blue", "cat red"))
    gold = open_reward("grmlight.lab.GoldReward")
    assert isinstance(gold, GoldReward)
    expected = [world_files().gold.score(PROMPT, text) for text in group.responses]
    assert gold.score([group]) == [expected]
    assert open_reward("operator.eq").score([group]) == [[0.0, 0.0]]


def test_an_answer_that_was_cut_off_is_worth_less():
    whole, cut = (TextGroup(PROMPT, ("cat red , dog blue",), ended=(ended,)) for ended in (True, False))
    gold = GoldReward()
    assert gold.score([cut])[0][0] < gold.score([whole])[0][0]


@pytest.mark.parametrize(
    "spec", ["nowhere", "no/where", "grmlight.lab.Nothing", "no.such.module", "grmlight.lab.world.TESTS"]
)
def test_what_is_no_reward(spec):
    with pytest.raises(ValueError, match="reward '"):
        open_reward(spec)
