import dataclasses
import itertools

import pytest

from grmlight.lab.words import COUNTS, RELATIONS, STYLES, TOPICS, VOCABULARY, pick, stream
from grmlight.lab.world import SAMPLED, Prompt, Split, World, draw_prompt


def prompts(split, count=500):
    rng = stream("test", split)
    return [draw_prompt(rng, split) for _ in range(count)]


def test_every_word_has_one_meaning():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 102


def test_streams_are_independent_and_reproducible():
    assert stream(0, "a").random() == stream(0, "a").random()
    assert len({stream(0, "a").random(), stream(0, "b").random(), stream(1, "a").random()}) == 3


def test_pick_is_uniform():
    rng = stream("pick")
    counts = [0, 0, 0, 0]
    for _ in range(8000):
        counts[pick(rng, range(4))] += 1
    assert max(abs(count - 2000) for count in counts) < 160


def test_facts_follow_the_seed_alone():
    facts = World(0).facts
    assert facts == World(0).facts != World(1).facts
    assert len(facts) == 80
    assert all(value in RELATIONS[relation] for (_, relation), value in facts.items())


def test_the_shipped_worlds_facts_stay_what_its_lm_has_learned():
    facts = World(0).facts
    assert [facts[entity, "color"] for entity in TOPICS["animals"]] == ["yellow", "white", "white", "yellow", "yellow"]
    assert [facts[entity, "place"] for entity in TOPICS["seats"]] == ["cellar", "harbor", "cellar", "garden", "garden"]


def test_a_world_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        World(0).seed = 1


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (Prompt("animals", "color", 2, "excited", "cat", 0), "tell two animals color avoid cat excited"),
        (Prompt("hats", "place", 1), "tell one hats place"),
        (Prompt("boats", "color", 2, "polite", "raft", 1), "polite list color of two boats but no raft"),
        (Prompt("boats", "color", 3, "plain", None, 1), "list color of three boats"),
        (Prompt("tools", "place", 4, "excited", "axe", 2), "i want four tools with place without axe excited"),
        (Prompt("seats", "color", 5, "polite", "sofa", 3), "color of seats avoid sofa five please polite"),
    ],
)
def test_prompts_in_words(prompt, text):
    assert prompt.text == text
    assert Prompt.parse(text) == prompt


@pytest.mark.parametrize("split", list(Split))
def test_prompts_read_back(split):
    for prompt in prompts(split):
        assert Prompt.parse(prompt.text) == prompt
        assert 4 <= len(prompt.text.split()) <= 9
        assert split.holds(prompt)


@pytest.mark.parametrize("text", ["", "tell me a joke", "tell two animals", "tell two animals hats color"])
def test_text_that_is_no_prompt_is_refused(text):
    with pytest.raises(ValueError, match="no prompt of the embedded world"):
        Prompt.parse(text)


def test_splits_are_disjoint_where_they_claim_to_be():
    assert not set(Split.ID.topics) & set(Split.OOD_TOPIC.topics)
    assert not set(Split.ID.templates) & set(Split.OOD_TEMPLATE.templates)
    assert not set(Split.ID.counts) & set(Split.OOD_TEMPLATE.counts)
    texts = {split: {prompt.text for prompt in prompts(split)} for split in SAMPLED.values()}
    assert not any(first & second for first, second in itertools.combinations(texts.values(), 2))


def test_shifts_change_only_what_they_name():
    assert Split.OOD_TOPIC.templates == Split.ID.templates
    assert Split.OOD_TOPIC.counts == Split.ID.counts
    assert Split.OOD_TEMPLATE.topics == Split.ID.topics
    assert Split.OOD_ALL.topics == Split.OOD_TOPIC.topics
    assert Split.OOD_ALL.templates == Split.OOD_TEMPLATE.templates
    assert Split.OOD_ALL.counts == Split.OOD_TEMPLATE.counts


def test_any_covers_everything():
    drawn = prompts(Split.ANY, 2000)
    assert {prompt.topic for prompt in drawn} == set(TOPICS)
    assert {prompt.relation for prompt in drawn} == set(RELATIONS)
    assert {prompt.count for prompt in drawn} == set(range(1, len(COUNTS) + 1))
    assert {prompt.style for prompt in drawn} == set(STYLES)
    assert {prompt.template for prompt in drawn} == {0, 1, 2, 3}
    assert 0.36 < sum(prompt.forbidden is not None for prompt in drawn) / len(drawn) < 0.44
