"""Component rewards of the embedded world."""

import pytest

from grmlight.lab.components import brevity, on_topic
from grmlight.lab.gold import Gold
from grmlight.lab.world import World
from grmlight.policy.rewards import open_reward


def test_facts_on_the_topic_are_counted_however_many_were_asked_for():
    prompt = "tell one hats color"
    assert on_topic(prompt, "") == 0
    assert on_topic(prompt, "turban red") == 1
    assert on_topic(prompt, "turban red , turban red , spade black , turban") == 2
    with pytest.raises(ValueError, match="no prompt of the embedded world"):
        on_topic("hello", "turban red")


def test_brevity_is_words():
    assert brevity("", "") == 0
    assert brevity("", "turban red , turban blue !") == -2


def test_more_of_either_is_not_more_gold():
    """A second item where one was asked for, and an answer of no item."""
    gold, prompt = Gold(World(0)), "tell one hats color"
    one, two, none = "turban red", "turban red , turban red", ""
    assert on_topic(prompt, two) > on_topic(prompt, one)
    assert brevity(prompt, none) > brevity(prompt, one)
    assert gold.score(prompt, one) > max(gold.score(prompt, two), gold.score(prompt, none))


def test_they_are_opened_by_their_path():
    assert open_reward("grmlight.lab.components.brevity").name == "brevity"
