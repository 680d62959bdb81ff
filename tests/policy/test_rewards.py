"""Rewards are opened by folder, by class and by function; whatever is none of these is one line."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grmlight.data.texts import TextGroup
from grmlight.lab import GoldReward, files, world_files
from grmlight.policy.best_of_n.identity import reward_identity
from grmlight.policy.best_of_n.scores import score_groups
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


HERE = "tests.policy.test_rewards"


def dividing(prompt: str, response: str) -> float:
    return 1 / len(response)


def silent(prompt: str, response: str) -> None:
    return None


class Choosy:
    """Needs to be told what to like."""

    def __init__(self, liked):
        self.liked = liked


class Clumsy:
    name = "clumsy"

    def score(self, groups):
        return [[{"a": 1.0}[response] for response in group.responses] for group in groups]


class Vague:
    name = "vague"

    def score(self, groups):
        return [[None for _ in group.responses] for group in groups]


class Void:
    name = "void"

    def score(self, groups):
        return None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dividing", r"reward dividing failed, at prompt 'why' \(ZeroDivisionError: division by zero\)"),
        ("silent", r"reward silent failed, at prompt 'who' \(it returned None, which is no number\)"),
        ("Clumsy", r"reward clumsy failed, at prompt 'why' \(KeyError: ''\)"),
        ("Vague", "reward vague: did not give one number an answer"),
        ("Void", "reward void: did not give one number an answer"),
        ("Choosy", r"reward '.*Choosy': cannot be made without arguments \(TypeError: .*liked'\); name a class"),
    ],
)
def test_a_reward_that_fails_is_one_line_with_the_prompt_and_the_cause(name, message):
    groups = [TextGroup("who", ("a", "a")), TextGroup("why", ("a", ""))]
    with pytest.raises(ValueError, match=message) as error:
        score_groups(open_reward(f"{HERE}.{name}"), groups)
    assert "\n" not in str(error.value)


def test_a_module_that_fails_when_it_is_imported_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_reward.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"reward 'broken_reward.f': .*cannot be imported \(ZeroDivisionError"):
        open_reward("broken_reward.f")


def test_prompts_that_the_gold_does_not_know_have_no_score():
    gold = GoldReward()
    (one, two), (known,) = gold.score([TextGroup("tell me", ("cat", "dog")), TextGroup(PROMPT, ("cat red",))])
    assert math.isnan(one)
    assert math.isnan(two)
    assert math.isfinite(known)
    assert gold.refused == {0: "no prompt of the embedded world"}


def identity_of(folder, spec):
    """In a process of its own, as modules stay imported."""
    code = f"from grmlight.policy.best_of_n.identity import reward_identity; print(reward_identity({spec!r}))"
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_a_rewards_identity_changes_with_the_files_of_its_package(tmp_path):
    package = tmp_path / "judging"
    (package / "parts").mkdir(parents=True)
    (package / "__init__.py").write_text("from judging.parts.rule import rule\n")
    (package / "parts" / "__init__.py").write_text("")
    (package / "parts" / "rule.py").write_text(
        "from judging.table import BONUS\ndef rule(p, r): return len(r) + BONUS\n"
    )
    (package / "table.py").write_text("BONUS = 1\n")
    before = identity_of(tmp_path, "judging.rule")
    assert identity_of(tmp_path, "judging.rule") == before
    (package / "table.py").write_text("BONUS = 2\n")
    assert identity_of(tmp_path, "judging.rule") != before


def test_a_reward_may_say_itself_what_it_is():
    Clumsy.identity = "the clumsy one, version 3"
    try:
        assert reward_identity(f"{HERE}.Clumsy") == f"{HERE}.Clumsy the clumsy one, version 3"
        Clumsy.identity = 3
        with pytest.raises(ValueError, match=r"its `identity` is 3; make it a text"):
            reward_identity(f"{HERE}.Clumsy")
    finally:
        del Clumsy.identity
    gold = GoldReward()
    assert reward_identity("grmlight.lab.GoldReward") == f"grmlight.lab.GoldReward {gold.identity}"
    assert files.world_key(0) in gold.identity


def test_the_golds_identity_changes_with_the_worlds_makers(monkeypatch):
    before = GoldReward().identity
    monkeypatch.setattr(files, "MAKERS", files.MAKERS[:-1])
    assert GoldReward().identity != before
