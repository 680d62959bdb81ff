"""The matrix: every answer scored once, equal texts alike, and nothing of another pool or reward."""

import dataclasses
import math

import numpy as np
import pytest

from grmlight.policy.best_of_n import scores
from grmlight.policy.best_of_n.pool import Pool
from grmlight.policy.best_of_n.scores import read_matrix, score_file, score_groups, score_pool
from tests.policy.best_of_n.samplers import Dice
from tests.policy.best_of_n.test_pool import IDENTITY, PROMPTS, filled


class Length:
    """Characters of the answer and of its prompt; a different number at each call if it is told to."""

    name = "length"

    def __init__(self, drift=0.0, refuse=None):
        self.drift, self.refuse, self.seen = drift, refuse, []

    def score(self, groups):
        found = []
        for group in groups:
            self.seen += [(group.prompt, text, ended) for text, ended in zip(group.responses, group.ended, strict=True)]
            spoiled = self.refuse in group.responses
            found.append([math.nan if spoiled else self.of(group.prompt, text) for text in group.responses])
        return found

    def of(self, prompt, text):
        return len(text) + len(prompt) / 10 + self.drift * len(self.seen)


def scored(tmp_path, pool, scorer, name="length"):
    path = score_file(tmp_path / "scores", pool, name)
    return path, score_pool(path, pool, PROMPTS, lambda: scorer)


def test_every_answer_has_its_score_and_no_text_two(tmp_path):
    pool, _ = filled(tmp_path / "pool.jsonl", 600)
    scorer = Length()
    path, count = scored(tmp_path, pool, scorer)
    assert count == 1800
    assert len(scorer.seen) == len(set(scorer.seen)) < 900
    for row in read_matrix([path], pool, 600):
        expected = [len(answer.text) + len(PROMPTS[row.prompt]) / 10 for answer in pool.answers(row.prompt)]
        assert row.scores_NR[:, 0].tolist() == expected
        answers = pool.answers(row.prompt)
        assert row.cut == sum(not answer.ended for answer in answers) > 0
        assert row.distinct == len({(answer.text, answer.ended) for answer in answers})


def test_a_second_time_nothing_is_scored(tmp_path):
    pool, _ = filled(tmp_path / "pool.jsonl", 20)
    scored(tmp_path, pool, Length())
    assert scored(tmp_path, Pool(tmp_path / "pool.jsonl", IDENTITY, 3), None)[1] == 0


def test_a_killed_scoring_goes_on_at_its_last_whole_block(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "ANSWERS_AT_ONCE", 1)
    pool, _ = filled(tmp_path / "pool.jsonl", 600)
    path, _ = scored(tmp_path, pool, Length())
    whole = path.read_bytes()
    for left in (0, 8 * 256 + 3, 8 * 700, len(whole) - 1):
        path.write_bytes(whole[:left])
        scorer = Length()
        assert scored(tmp_path, pool, scorer)[1] >= 1800 - left // 8
        assert path.read_bytes() == whole
    assert len(scorer.seen) < 88


def test_equal_texts_tie_exactly_even_if_scored_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "ANSWERS_AT_ONCE", 1)
    pool, _ = filled(tmp_path / "pool.jsonl", 600)
    path, _ = scored(tmp_path, pool, Length(drift=1e-9))
    for row in read_matrix([path], pool, 600):
        found = {}
        for answer, score in zip(pool.answers(row.prompt), row.scores_NR[:, 0], strict=True):
            assert found.setdefault((answer.text, answer.ended), score) == score


def test_a_matrix_grows_with_its_pool(tmp_path):
    pool, _ = filled(tmp_path / "pool.jsonl", 300)
    path, _ = scored(tmp_path, pool, Length())
    before = list(read_matrix([path], pool, 300))
    pool, _ = filled(tmp_path / "pool.jsonl", 700)
    longer, count = scored(tmp_path, pool, Length())
    assert longer == path
    assert count == 1200
    for old, again, new in zip(before, read_matrix([path], pool, 300), read_matrix([path], pool, 700), strict=True):
        assert (old.scores_NR == again.scores_NR).all()
        assert (new.scores_NR[:300] == old.scores_NR).all()
        assert np.isfinite(new.scores_NR).all()


def test_other_answers_and_other_rewards_have_other_files(tmp_path):
    pool, _ = filled(tmp_path / "pool.jsonl", 5)
    other = Pool(tmp_path / "other.jsonl", IDENTITY | {"seed": 4}, 3)
    assert (
        len({score_file(tmp_path, pool, "a"), score_file(tmp_path, pool, "b"), score_file(tmp_path, other, "a")}) == 3
    )

    class Loud(Dice):
        def say(self, *given):
            found = super().say(*given)
            return type(found)(found.tokens, found.text.upper(), found.ended)

    same_name, _ = filled(tmp_path / "loud.jsonl", 5, Loud())
    assert score_file(tmp_path, same_name, "a") != score_file(tmp_path, pool, "a")


def test_one_answer_that_is_refused_does_not_spoil_its_group(tmp_path):
    pool, _ = filled(tmp_path / "pool.jsonl", 600)
    bad = pool.answers(1)[0].text
    path, _ = scored(tmp_path, pool, Length(refuse=bad))
    for row in read_matrix([path], pool, 600):
        texts = [answer.text for answer in pool.answers(row.prompt)]
        assert row.usable_N.tolist() == [text != bad for text in texts]


def test_a_reward_that_forgets_an_answer_is_named():
    class Forgetful:
        name = "forgetful"

        def score(self, groups):
            return [[0.0] for _ in groups]

    from grmlight.data.texts import TextGroup

    with pytest.raises(ValueError, match="reward forgetful: did not give one number an answer"):
        score_groups(Forgetful(), [TextGroup("p", ("a", "b"))])


class Shouting(Dice):
    """Other answers from the second block on."""

    def generate(self, prompts, options, seed, numbers=None):
        found = super().generate(prompts, options, seed, numbers)
        groups = [
            dataclasses.replace(group, answers=tuple(dataclasses.replace(a, text=a.text + "!!") for a in group.answers))
            for group in found.groups
        ]
        return dataclasses.replace(found, groups=tuple(groups))


def expected(pool, prompt):
    return [len(answer.text) + len(PROMPTS[prompt]) / 10 for answer in pool.answers(prompt)]


@pytest.mark.parametrize(("kept", "more"), [(3, 600), (5, 1024), (8, 256), (8, 600)])
def test_scores_of_a_pool_that_was_cut_off_are_cut_off_with_it(tmp_path, kept, more):
    pool, _ = filled(tmp_path / "pool.jsonl", 600)
    scored(tmp_path, pool, Length())
    lines = (tmp_path / "pool.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "pool.jsonl").write_bytes(b"".join(lines[:kept]))
    if more > 256:
        pool, _ = filled(tmp_path / "pool.jsonl", more, Shouting())
    else:
        pool = Pool(tmp_path / "pool.jsonl", IDENTITY, 3)
    path, count = scored(tmp_path, pool, Length())
    assert path.stat().st_size == 8 * pool.counts().sum()
    for row in read_matrix([path], pool, 1024):
        assert row.scores_NR[:, 0].tolist() == expected(pool, row.prompt)
    # What was the same was not scored again.
    assert count == sum(block.answers for block in pool.blocks[kept - 2 :])


def test_a_column_without_its_notes_is_scored_again(tmp_path):
    pool, _ = filled(tmp_path / "pool.jsonl", 20)
    path, _ = scored(tmp_path, pool, Length())
    path.with_suffix(".blocks").unlink()
    assert scored(tmp_path, pool, Length())[1] == 60
    assert path.stat().st_size == 8 * 60


def test_answers_of_nothing_but_space_are_empty(tmp_path):
    class Blank(Dice):
        def say(self, seed, number, sample):
            return dataclasses.replace(super().say(seed, number, sample), text=[" \n", "", "a"][sample % 3])

    pool, _ = filled(tmp_path / "pool.jsonl", 6, Blank())
    path, _ = scored(tmp_path, pool, Length())
    assert [row.empty for row in read_matrix([path], pool, 6)] == [4, 4, 4]
