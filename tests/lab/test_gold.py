import re
from pathlib import Path

import numpy as np
import pytest

from grmlight.lab.gold import WEIGHTS, Answer, Gold, Parts, parts, stated_fact
from grmlight.lab.world import Prompt, World

WORLD = World(0)
PERFECT = Parts(count=1, topic=1, fact=1, distinct=1, avoid=1, style=1, grammar=1, concise=0)


def true(entity, relation="color"):
    return f"{entity} {WORLD.facts[entity, relation]}"


def false(entity, relation="color"):
    colors = ("red", "blue") if relation == "color" else ("attic", "cellar")
    return f"{entity} {next(value for value in colors if value != WORLD.facts[entity, relation])}"


def found(text, ended=True, **prompt):
    return parts(WORLD, Prompt(**{"topic": "animals", "relation": "color", "count": 2} | prompt), text, ended)


def test_a_perfect_answer():
    perfect = found(f"{true('cat')} , {true('dog')}")
    assert perfect == PERFECT
    assert perfect.total == sum(WEIGHTS.values()) - WEIGHTS["concise"] == 8.5


@pytest.mark.parametrize(("items", "expected"), [(1, 0.5), (2, 1), (3, 0.5), (4, 0), (6, 0)])
def test_count(items, expected):
    assert found(" , ".join([true("cat")] * items)).count == expected


def test_topic_is_the_share_on_topic():
    assert found(f"{true('cat')} , {true('raft')}").topic == 0.5
    assert found(f"{true('sofa')} , {true('raft')}").topic == 0


def test_fact_is_the_share_true_of_the_asked_relation():
    assert found(f"{true('cat')} , {false('dog')}").fact == 0.5
    assert found(true("cat", "place")).fact == 0
    assert found(true("cat", "place"), relation="place").fact == 1


def test_facts_off_topic_are_facts():
    assert found(true("raft")).fact == 1


def test_distinct_counts_entities_not_items():
    assert found(f"{true('cat')} , {false('cat')}").distinct == 0.5
    assert found(f"{true('cat')} , {true('cat')} , {true('dog')}").distinct == pytest.approx(2 / 3)


def test_avoid():
    answer = f"{true('cat')} , {true('dog')}"
    assert found(answer, forbidden="cat").avoid == 0
    assert found(answer, forbidden="fox").avoid == 1
    assert found("cat", forbidden="cat").avoid == 0


@pytest.mark.parametrize(
    ("style", "answer", "expected"),
    [
        ("plain", "{}", 1),
        ("plain", "dear {}", 0),
        ("plain", "{} !", 0),
        ("polite", "dear {}", 1),
        ("polite", "{}", 0),
        ("polite", "dear {} !", 0),
        ("excited", "{} !", 1),
        ("excited", "{}", 0),
        ("excited", "dear {} !", 0),
    ],
)
def test_style(style, answer, expected):
    assert found(answer.format(true("cat")), style=style).style == expected


def test_grammar_is_the_share_of_well_formed_items():
    assert found(f"{true('cat')} , dog").grammar == 0.5
    assert found(f"{true('cat')} , dog , owl of red , red hen").grammar == 0.25


def test_grammar_is_halved_without_an_end():
    assert found(true("cat"), ended=False).grammar == 0.5


def test_badly_formed_items_do_not_enter_shares():
    mixed = found(f"{true('cat')} , dog")
    assert (mixed.topic, mixed.fact, mixed.distinct) == (1, 1, 1)


def test_concise_is_minus_fillers_an_item():
    assert found(f"well {true('cat')} , {true('dog')}").concise == -0.5
    assert found(f"well so {true('cat')} , so well {true('dog')}").concise == -2
    assert found(f"well so really {true('cat')}").concise == -2


@pytest.mark.parametrize("text", ["", "!", "dear", "dear !", "of of , ,", "<bos> cat", "no such words"])
def test_any_text_has_a_gold(text):
    hopeless = found(text)
    assert (hopeless.topic, hopeless.fact, hopeless.distinct, hopeless.grammar) == (0, 0, 0, 0)


def test_a_single_exclamation_mark_is_no_item():
    assert Answer.parse("!") == Answer(dear=False, bang=True, items=())


@pytest.mark.parametrize(
    "text", ["cat red", "dear cat red , so dog blue !", "dear", "!", "cat , , dog", "well so cat red of"]
)
def test_answers_are_put_together_again(text):
    assert Answer.parse(text).text.split() == text.split()


@pytest.mark.parametrize("item", ["", "cat", "red cat", "cat of red", "cat red red", "cat well red", "well"])
def test_items_that_state_nothing(item):
    assert stated_fact(item.split()) is None


def test_items_that_state_a_fact():
    assert stated_fact(["so", "well", "cat", "attic"]) == ("cat", "attic")


def test_weights_are_applied():
    parted = Parts(count=0.5, topic=0.25, fact=0.125, distinct=1, avoid=0, style=1, grammar=0.5, concise=-2)
    assert parted.total == pytest.approx(0.5 + 1.5 * 0.25 + 2 * 0.125 + 1 + 0 + 1 + 0.5 - 1)


def test_gold_is_standardized():
    gold = Gold(WORLD, mean=6.5, deviation=1.5)
    prompt = Prompt("animals", "color", 2)
    answers = [f"{true('cat')} , {true('dog')}", "cat"]
    expected = [(8.5 - 6.5) / 1.5, (found("cat").total - 6.5) / 1.5]
    assert gold.score(prompt, answers[0]) == pytest.approx(expected[0])
    assert gold.score(prompt.text, answers[0]) == pytest.approx(expected[0])
    scores = gold.scores([prompt, prompt.text], answers)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected)
    cut = gold.scores([prompt], answers[:1], ended=[False])
    np.testing.assert_allclose(cut, [(8.0 - 6.5) / 1.5])


def test_the_examples_of_the_documentation_are_true(shipped):
    page = Path(__file__).parents[2] / "docs" / "world.md"
    rows = re.findall(
        r"^\| `(.+?)` \|.*\| (\d+\.\d+) \| (\d+\.\d+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) == 8
    prompt = Prompt.parse("tell two animals color avoid cat excited")
    for answer, total, score in rows:
        assert parts(shipped.gold.world, prompt, answer).total == pytest.approx(float(total))
        assert shipped.gold.score(prompt, answer) == pytest.approx(float(score), abs=0.005)
