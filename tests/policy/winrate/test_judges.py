"""Judges reply in both orders; replies are kept as they come, also where one fails."""

import json

import pytest
from transformers import AutoTokenizer

from grmlight.data.texts import TextGroup
from grmlight.labeling.endpoint import EndpointAsker
from grmlight.models.judge import Judge
from grmlight.policy.best_of_n.pool import PoolAnswer
from grmlight.policy.rewards import FunctionReward
from grmlight.policy.winrate.journal import Journal
from grmlight.policy.winrate.judges import Asked, EndpointJudge, LetterJudge, RewardJudge, open_judge
from tests.labeling.server import serving
from tests.tiny_models import tiny_reward_model

SHORT, LONG = PoolAnswer("a cat", 2, True), PoolAnswer("a cat and a dog", 5, True)


def asked(count=1):
    """Each pair in both orders."""
    return [Asked(f"prompt {number}", *order) for number in range(count) for order in ((SHORT, LONG), (LONG, SHORT))]


def length(prompt, response):
    return float(len(response))


def test_the_higher_reward_is_the_better_answer():
    judge = RewardJudge(FunctionReward(length, "length"), "length")
    assert list(judge.ask(asked())) == [(0, "B"), (1, "A")]


def test_equal_rewards_are_the_same_and_nan_is_no_verdict():
    constant, nothing = (RewardJudge(FunctionReward(lambda p, r, v=v: v, "c"), "c") for v in (1.0, float("nan")))
    assert [reply for _, reply in constant.ask(asked())] == ["=", "="]
    assert [reply for _, reply in nothing.ask(asked())] == [None, None]


class FirstPlace:
    """A scorer that likes what is shown first."""

    name = "first"

    def score(self, groups):
        return [[1.0, 0.0] for _ in groups]


def test_a_scorer_that_goes_by_the_place_is_seen_in_both_orders():
    assert [reply for _, reply in RewardJudge(FirstPlace(), "first").ask(asked(2))] == ["A"] * 4


@pytest.fixture(scope="module")
def letters(tmp_path_factory, byte_tokenizer):
    """A folder with a tiny random LM whose tokenizer has the letters."""
    folder = tmp_path_factory.mktemp("lm")
    entries = {"vocab_size": 320, "max_position_embeddings": 2048}
    tiny_reward_model("llama", config=entries, seed=3).lm.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    tokenizer.add_tokens([" A", " B"])
    tokenizer.save_pretrained(folder)
    return folder


def test_a_causal_lm_replies_by_its_log_odds_in_each_order(letters):
    lm = Judge(str(letters))
    groups = [each.group() for each in asked(2)]
    replies = [reply for _, reply in LetterJudge(lm, "lm").ask(asked(2))]
    odds = [found[0, 1] for found in lm.log_odds(groups, [[(0, 1)]] * 4)]
    assert replies == ["A" if each > 0 else "B" for each in odds]
    # Its scores are the mean of both orders.
    (first, second) = lm.score([groups[0]])[0]
    assert first - second == pytest.approx((odds[0] - odds[1]) / 2, abs=1e-5)


def test_an_endpoint_is_asked_with_the_answers_in_their_order():
    def reply(body):
        text = body["messages"][0]["content"]
        first, second = text.split("[Answer A]\n")[1].split("\n\n[Question]")[0].split("\n\n[Answer B]\n")
        return "A" if len(first) > len(second) else "B, because"

    with serving(reply) as (url, requests):
        found = dict(EndpointJudge(EndpointAsker(url, "m", pause=0.01)).ask(asked(3)))
    assert [found[place] for place in range(6)] == ["B", "A"] * 3
    assert len(requests) == 6
    assert sum("prompt 2" in each["body"]["messages"][0]["content"] for each in requests) == 2


def test_a_reply_that_names_nothing_is_no_verdict():
    with serving(lambda body: "I like both.") as (url, _):
        assert list(EndpointJudge(EndpointAsker(url)).ask(asked()[:1])) == [(0, None)]


def test_replies_of_an_endpoint_that_stops_are_kept_and_not_paid_for_twice(tmp_path):
    questions = asked(20)

    def failing(body):
        return b"{}" if "prompt 13" in body["messages"][0]["content"] else "A"

    def made(url, name="m"):
        return EndpointJudge(EndpointAsker(url, name, retries=0, parallel=3))

    path = tmp_path / "replies.jsonl"
    with serving(failing) as (url, requests):
        judge = made(url)
        with pytest.raises(
            ValueError, match=r"none of OpenAI's chat protocol.*keeps \d+ replies; run it again"
        ) as told:
            Journal(path, {"of": "these"}).ask(judge, questions)
        paid = sum("prompt 13" not in each["body"]["messages"][0]["content"] for each in requests)
    assert "\n" not in str(told.value)
    kept = Journal(path, {"of": "these"}).replies
    assert len(kept) == paid > 0
    with serving(lambda body: "B") as (url, requests):
        found = Journal(path, {"of": "these"}).ask(made(url), questions)
    assert len(requests) == 40 - paid
    assert [found[number] for number in kept] == ["A"] * paid
    assert found.count("B") == 40 - paid


def test_an_endpoint_that_does_not_answer_is_one_line(tmp_path):
    with serving(lambda body: "A") as (url, _):
        pass
    judge = EndpointJudge(EndpointAsker(url, retries=1, pause=0.01, timeout=2))
    with pytest.raises(ValueError, match="does not answer"):
        Journal(tmp_path / "replies.jsonl", {}).ask(judge, asked())


def test_a_journal_goes_on_after_what_a_kill_left_of_its_last_line(tmp_path):
    path, judge = tmp_path / "replies.jsonl", RewardJudge(FunctionReward(length, "length"), "length")
    whole = Journal(path, {"of": 1}).ask(judge, asked(2))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:3])
    journal = Journal(path, {"of": 1})
    assert len(journal.replies) == 2
    assert journal.ask(judge, asked(2)) == whole
    assert [json.loads(line) for line in path.read_text().splitlines()[1:]] == [[n, r] for n, r in enumerate(whole)]


def test_a_journal_of_other_questions_is_refused(tmp_path):
    path = tmp_path / "replies.jsonl"
    Journal(path, {"of": 1})
    with pytest.raises(ValueError, match="is of other answers or another judge"):
        Journal(path, {"of": 2})
    path.write_text('{"of": 1}\nnothing\n')
    with pytest.raises(ValueError, match="line 2 is no reply"):
        Journal(path, {"of": 1})


@pytest.mark.parametrize("spec", ["nowhere", "grmlight.lab.Nothing", "grmlight.lab.world.TESTS"])
def test_a_judge_that_is_no_reward_is_one_line(spec):
    with pytest.raises(ValueError, match="reward '"):
        open_judge(spec)


def test_the_kind_of_folder_decides(letters, tmp_path):
    Judge(str(letters)).save_pretrained(tmp_path / "judge")
    judge = open_judge(str(tmp_path / "judge"))
    assert isinstance(judge, LetterJudge)
    assert isinstance(open_judge("grmlight.lab.GoldReward"), RewardJudge)
    group = TextGroup("x", (SHORT.text, LONG.text))
    assert set(judge.scorer.log_odds([group], [[(0, 1), (1, 0)]])[0]) == {(0, 1), (1, 0)}
