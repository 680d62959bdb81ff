"""Judges: what says which of two answers is better. A reward, a causal LM that is asked for a letter, or an endpoint.

Notable decisions:

- A question shows two answers in an order. Every pair is asked about in both, so a judge is not trusted to be fair.
- Replies come one by one, as soon as they are there, so that none is lost if the next one fails.
"""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Generic, Literal, Protocol, TypeVar

from grmlight.data.texts import TextGroup
from grmlight.evaluation.group_scorer import GroupScorer
from grmlight.labeling.endpoint import EndpointAsker
from grmlight.models.judge import Judge
from grmlight.models.judge_prompt import TEMPLATE, filled
from grmlight.policy.best_of_n.identity import reward_identity
from grmlight.policy.best_of_n.pool import PoolAnswer
from grmlight.policy.best_of_n.scores import score_groups
from grmlight.policy.rewards import open_reward
from grmlight.policy.rollouts import PromptText

Reply = Literal["A", "B", "="] | None
"""The answer shown first is better, the second is, neither; None where the judge gave no verdict."""

_Scorer = TypeVar("_Scorer", bound=GroupScorer)

_PAIRS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question: which of two answers to a prompt is better?

    Attributes:
        prompt: what was answered.
        first, second: the answers in the order in which they are shown.
    """

    prompt: PromptText
    first: PoolAnswer
    second: PoolAnswer

    def group(self) -> TextGroup:
        """As scorers read it."""
        shown = (self.first, self.second)
        return TextGroup(self.prompt, tuple(each.text for each in shown), ended=tuple(each.ended for each in shown))


class PairJudge(Protocol):
    """Compares answers.

    Attributes:
        name: what it is called in reports.
        identity: tells it from any other; its replies are not mixed with another's.
        at_once: questions of a call, at most.
    """

    name: str
    identity: str
    at_once: int

    def ask(self, questions: Sequence[Asked]) -> Iterator[tuple[int, Reply]]:
        """Each question's place with its reply, as they come.

        Errors: ValueError in one line once the judge can give no more.
        """
        ...


class _NumberJudge(ABC, Generic[_Scorer]):
    """The answer of the higher number is better; equal ones are the same, and NaN is no verdict.

    Args:
        scorer: what gives the numbers.
        identity: of it.
    """

    at_once = _PAIRS_AT_ONCE

    def __init__(self, scorer: _Scorer, identity: str) -> None:
        self.scorer, self.name, self.identity = scorer, scorer.name, identity

    def ask(self, questions: Sequence[Asked]) -> Iterator[tuple[int, Reply]]:
        """See `PairJudge`."""
        for place, (first, second) in enumerate(self._numbers([each.group() for each in questions])):
            yield place, "A" if first > second else "B" if first < second else "=" if first == second else None

    @abstractmethod
    def _numbers(self, groups: list[TextGroup]) -> Iterable[Sequence[float]]:
        """Of the first and the second answer of each group."""


class RewardJudge(_NumberJudge[GroupScorer]):
    """A reward: the answer of the higher one is better."""

    def _numbers(self, groups: list[TextGroup]) -> Iterable[Sequence[float]]:
        return score_groups(self.scorer, groups)


class LetterJudge(_NumberJudge[Judge]):
    """A causal LM that is asked for a letter: `grmlight.models.judge`."""

    def _numbers(self, groups: list[TextGroup]) -> Iterable[Sequence[float]]:
        return ((odds[0, 1], 0.0) for odds in self.scorer.log_odds(groups, [[(0, 1)]] * len(groups)))


class EndpointJudge:
    """A model behind an OpenAI-compatible API, asked the question of `grmlight.models.judge_prompt`.

    Args:
        asker: the endpoint.
        template: the question.
    """

    def __init__(self, asker: EndpointAsker, template: str = TEMPLATE) -> None:
        self.asker, self.template, self.name = asker, template, asker.name
        self.identity = f"{asker.name} {hashlib.sha256(template.encode()).hexdigest()}"
        self.at_once = 8 * asker.parallel

    def ask(self, questions: Sequence[Asked]) -> Iterator[tuple[int, Reply]]:
        """See `PairJudge`. What is under way when one fails is waited for: it may have been paid for."""
        failed: ValueError | None = None
        with ThreadPoolExecutor(self.asker.parallel) as pool:
            places = {pool.submit(self._ask, each): place for place, each in enumerate(questions)}
            for future in as_completed(places):
                if future.cancelled():
                    continue
                try:
                    reply = future.result()
                except ValueError as error:
                    failed = failed or error
                    for other in places:
                        other.cancel()
                    continue
                yield places[future], reply
        if failed is not None:
            raise failed

    def _ask(self, asked: Asked) -> Reply:
        return self.asker.reply(filled(self.template, asked.prompt, asked.first.text, asked.second.text))


def open_judge(spec: str, asker: EndpointAsker | None = None) -> PairJudge:
    """The judge that a word means.

    Args:
        spec: a reward (`grmlight.policy.rewards.open_reward`), or a folder of kind "judge".
        asker: the endpoint, if it is one.

    Errors: ValueError in one line for what is none of these.
    """
    if asker is not None:
        return EndpointJudge(asker)
    scorer = open_reward(spec)
    identity = reward_identity(spec)
    return LetterJudge(scorer, identity) if isinstance(scorer, Judge) else RewardJudge(scorer, identity)
