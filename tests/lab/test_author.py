import dataclasses
import math

import pytest

from grmlight.lab.author import ERRORS, Author, issues, write_review
from grmlight.lab.corpus import corpus, write_document
from grmlight.lab.gold import Answer, parts
from grmlight.lab.words import EXCELLENT, FILLERS, ISSUES, REVIEW, TOPIC_OF, stream
from grmlight.lab.world import Prompt, Split, World, draw_prompt

WORLD = World(0)
TRIALS = 4000
PROMPT = Prompt("animals", "color", 3, "polite", "cat")
FLAWLESS = Author(dict.fromkeys(ERRORS, 0.0), 0.0)


def erring(kind):
    return dataclasses.replace(FLAWLESS, mistakes=FLAWLESS.mistakes | {kind: 1.0})


def answers(author, prompt=PROMPT, count=TRIALS):
    rng = stream("answers", str(author), prompt.text)
    return [author.write(WORLD, prompt, rng) for _ in range(count)]


def measured(author, prompt=PROMPT):
    return [parts(WORLD, prompt, text) for text in answers(author, prompt)]


def share(flags):
    flags = list(flags)
    return sum(flags) / len(flags)


def near(expected, trials=TRIALS):
    """Within four standard errors of a share."""
    return pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / trials) + 1e-9)


def test_a_flawless_author_writes_perfect_answers():
    rng = stream("flawless")
    for _ in range(300):
        prompt = draw_prompt(rng, Split.ID)
        assert parts(WORLD, prompt, FLAWLESS.write(WORLD, prompt, rng)).total == 8.5


def test_the_probability_of_a_mistake_falls_with_quality():
    rng = stream("quality")
    for quality in (0.2, 0.5, 0.8):
        drawn = [Author.draw(rng, quality) for _ in range(TRIALS)]
        for kind, most in ERRORS.items():
            mean = sum(author.mistakes[kind] for author in drawn) / TRIALS
            assert mean == pytest.approx(most * (1 - quality), abs=0.03)


def test_better_authors_use_more_fillers():
    rng = stream("fillers")
    habits = [sum(Author.draw(rng, quality).filler for _ in range(TRIALS)) / TRIALS for quality in (0.5, 0.75, 1)]
    assert habits == pytest.approx([0.05 + 0.45 * quality**2 for quality in (0.5, 0.75, 1)], abs=0.03)


def test_skills_vary_one_by_one():
    author = Author.draw(stream("skills"), 0.5)
    skills = [1 - author.mistakes[kind] / most for kind, most in ERRORS.items()]
    assert len({round(skill, 6) for skill in skills}) == len(ERRORS)


def test_wrong_counts_are_off_by_one_or_two():
    counts = [len(Answer.parse(text).items) for text in answers(erring("count"))]
    assert all(share(count == wrong for count in counts) == near(0.25) for wrong in (1, 2, 4, 5))


def test_wrong_counts_never_fall_below_one():
    prompt = dataclasses.replace(PROMPT, count=1)
    counts = {len(Answer.parse(text).items) for text in answers(erring("count"), prompt)}
    assert counts == {2, 3}


def test_wrong_styles_are_the_other_two():
    parsed = [Answer.parse(text) for text in answers(erring("style"))]
    assert share(answer.bang for answer in parsed) == near(0.5)
    assert not any(answer.dear for answer in parsed)


def test_off_topic_documents_stray_to_one_other_topic():
    strayed = []
    for text in answers(erring("topic")):
        topics = {TOPIC_OF[word] for word in text.split() if word in TOPIC_OF} - {"animals"}
        assert len(topics) <= 1
        strayed += [TOPIC_OF[word] != "animals" for word in text.split() if word in TOPIC_OF]
    assert share(strayed) == near(0.8)


def test_lying_documents_redraw_most_values():
    expected = 0.2 + 0.8 / 6
    assert sum(found.fact for found in measured(erring("fact"))) / TRIALS == near(expected)


def test_repetitive_documents_repeat():
    prompt = dataclasses.replace(PROMPT, count=2)
    assert share(found.distinct < 1 for found in measured(erring("distinct"), prompt)) == near(0.7)


def test_the_forbidden_entity_is_named_when_that_skill_fails():
    assert all(found.avoid == 0 for found in measured(erring("avoid")))
    assert all(found.avoid == 1 for found in measured(erring("avoid"), dataclasses.replace(PROMPT, forbidden=None)))


def test_garbled_items_are_never_well_formed():
    items = [item for text in answers(erring("grammar")) for item in Answer.parse(text).items]
    assert all(found.grammar == 0 for found in measured(erring("grammar")))
    assert all(share(len(item) == length for item in items) == near(1 / 3) for length in (1, 3))


def test_fillers_stand_before_entities():
    author = dataclasses.replace(FLAWLESS, filler=0.3)
    words = [item[:-2] for text in answers(author) for item in Answer.parse(text).items]
    assert all(word in FILLERS for fillers in words for word in fillers)
    assert share(len(fillers) == 2 for fillers in words) == near(0.09)
    assert share(len(fillers) == 0 for fillers in words) == near(0.49)


def test_issues_name_what_is_wrong():
    prompt = Prompt("animals", "color", 2, "plain", "fox")
    cat, dog = (f"{entity} {WORLD.facts[entity, 'color']}" for entity in ("cat", "dog"))
    liar = next(f"dog {value}" for value in ("red", "blue") if value != WORLD.facts["dog", "color"])
    for answer, expected in [
        (f"{cat} , {dog}", set()),
        (cat, {"miscounted"}),
        (f"{cat} , raft {WORLD.facts['raft', 'color']}", {"offtopic"}),
        (f"{cat} , {liar}", {"untrue"}),
        (f"{cat} , {cat}", {"repetitive"}),
        (f"{cat} , {dog} !", {"unstyled"}),
        (f"{cat} , dog", {"garbled"}),
        (f"{cat} , fox {WORLD.facts['fox', 'color']}", {"banned"}),
        (f"well {cat} , {dog}", {"wordy"}),
    ]:
        assert issues(WORLD, prompt, answer) == expected


def test_reviews_name_most_true_issues_and_few_others():
    rng = stream("reviews")
    reviews = [write_review(WORLD, PROMPT, "cat", rng).split() for _ in range(TRIALS)]
    true = issues(WORLD, PROMPT, "cat")
    assert true == {"miscounted", "unstyled", "garbled", "banned", "offtopic", "untrue", "repetitive"}
    assert all(review[0] == REVIEW and review[-1] == "." for review in reviews)
    for issue in ISSUES:
        assert share(issue in review for review in reviews) == near(0.85 if issue in true else 0.03)


def test_a_review_without_issues_is_excellent():
    rng = stream("excellent")
    perfect = FLAWLESS.write(WORLD, PROMPT, rng)
    reviews = [write_review(WORLD, PROMPT, perfect, rng) for _ in range(TRIALS)]
    assert share(f"{REVIEW} {EXCELLENT} ." == review for review in reviews) == near(0.97**8)


def test_documents_are_mostly_reviewed_and_mixed():
    documents = list(corpus(WORLD, TRIALS))
    assert share(bool(document.review) for document in documents) == near(0.8)
    totals = [parts(WORLD, document.prompt, document.answer).total for document in documents]
    assert 6.3 < sum(totals) / TRIALS < 6.6
    assert max(totals) == 8.5
    assert max(len(document.text.split()) for document in documents) <= 64


def test_a_document_in_words():
    document = write_document(WORLD, stream("document"))
    assert document.text.startswith(f"<bos> {document.prompt.text} <sep> {document.answer} <eos>")


def test_the_corpus_is_reproducible():
    assert list(corpus(WORLD, 50)) == list(corpus(WORLD, 60))[:50]
    assert list(corpus(WORLD, 50)) != list(corpus(WORLD, 50, "fresh"))
    assert list(corpus(WORLD, 50)) != list(corpus(World(1), 50))
