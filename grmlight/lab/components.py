"""Rewards that are each good for an answer of the embedded world only up to a point: more of them is not more gold.

Functions of prompt and response, for whatever takes a reward by its path.
"""

from __future__ import annotations

from grmlight.lab.gold import Answer, stated_fact
from grmlight.lab.words import TOPIC_OF
from grmlight.lab.world import Prompt


def on_topic(prompt: str, response: str) -> float:
    """How many facts an answer states about the topic. The gold wants as many as were asked for, and none twice.

    Errors: ValueError for a prompt that is none of the world's.
    """
    topic = Prompt.parse(prompt).topic
    facts = [fact for item in Answer.parse(response).items if (fact := stated_fact(item))]
    return float(sum(TOPIC_OF[entity] == topic for entity, _ in facts))


def brevity(prompt: str, response: str) -> float:  # noqa: ARG001 - rewards are given both
    """Minus the answer's words, in units of three: an item and its comma. The gold wants no fillers, but all items."""
    return -len(response.split()) / 3
