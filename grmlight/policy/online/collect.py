"""Collecting: the answers to an iteration's prompts, and their rewards, on every rank; and on disk.

Shape suffixes: N answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from grmlight.evaluation.group_scorer import GroupScorer
from grmlight.policy.online.buffer import Kept, RolloutFiles
from grmlight.policy.online.experience import groups_of
from grmlight.policy.ranks import AllRanks
from grmlight.policy.rewards import RewardError, checked_scores
from grmlight.policy.rollouts import Answer, PromptText, Rollout, Rollouts
from grmlight.policy.sampler import Sampler, SamplingOptions


class Prompts(Protocol):
    """A rank's prompts of one iteration.

    Attributes:
        prompts: text or messages.
        numbers: the place of each among those of all ranks.
        counts: 1, or 0 for one that only fills an empty share.
    """

    @property
    def prompts(self) -> Sequence[PromptText]: ...  # noqa: D102
    @property
    def numbers(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def counts(self) -> Sequence[int]: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Collector:
    """Answers prompts and rewards the answers; what was paid for is on disk before anything else is done.

    Attributes:
        sampler: answers.
        sampling: how.
        rewards: by name.
        ranks: who shares the work.
        files: where rollouts are kept, if anywhere.
        say: takes the name of what is to be said once, and the text.
    """

    sampler: Sampler
    sampling: SamplingOptions
    rewards: Mapping[str, GroupScorer]
    ranks: AllRanks
    files: RolloutFiles | None
    say: Callable[[str, str], None]

    def collect(self, batch: Prompts, iteration: int, key: str, seed: int) -> tuple[Kept, float]:
        """The answers to all ranks' prompts with every reward, found or paid for; and the seconds of sampling now.

        Errors: ValueError on every rank for prompts of which none can be answered, a sampler that gives no tokens, and
        a reward that fails.
        """
        kept = self.ranks.from_first(self.files.read(iteration, key) if self.files and self.ranks.rank == 0 else None)
        seconds = 0.0
        bad = kept is not None and any(map(_incomplete, kept.rollouts.groups))
        if kept is None or bad:
            again = self._sample(batch, iteration, seed, kept)
            seconds, kept = again.rollouts.seconds, again
            self._write(iteration, key, kept)
        self._check(iteration, kept)
        for name, scorer in self.rewards.items():
            if name not in kept.rewards:
                found = score(kept.rollouts.groups, {name: scorer}, self.ranks)
                kept = dataclasses.replace(kept, rewards={**kept.rewards, **found})
                # The next one may fail, and this one may have cost money.
                self._write(iteration, key, kept)
        return kept, seconds

    def _check(self, iteration: int, kept: Kept) -> None:
        """Errors: ValueError that counts answers of no token, and names the first one's prompt."""
        groups = kept.rollouts.groups
        empty = [place for place, each in enumerate(groups) for answer in each.answers or (None,) if _tokenless(answer)]
        if empty:
            total = sum(len(each.answers) for each in groups)
            raise ValueError(
                f"iteration {iteration}: sampler {kept.rollouts.sampler!r} gave answers of no token: {len(empty)} of "
                f"{total}, the first to prompt {empty[0] + 1}, {str(groups[empty[0]].prompt)[:60]!r}; mend it, and go "
                "on from the last checkpoint: these prompts are answered again, the other answers are kept"
            )

    def _sample(self, batch: Prompts, iteration: int, seed: int, kept: Kept | None) -> Kept:
        """This rank answers its prompts; all ranks get all answers, in the order of the prompts.

        Prompts whose answers are kept and whole are not answered again.
        """
        mine = [number for _, number in self._answerable(batch)[0]]
        numbers = sorted(number for part in self.ranks.gather(mine) for number in part)
        have: dict[int, Rollout] = {}
        if kept is not None and len(numbers) == len(kept.rollouts.groups):
            found = zip(numbers, kept.rollouts.groups, strict=True)
            have = {number: rollout for number, rollout in found if not _incomplete(rollout)}
        parts = self.ranks.gather(self.ranks.together(lambda: self._answer(batch, seed, have)))
        numbered = have | {number: rollout for answered, _, _ in parts for number, rollout in answered}
        refused = [each for _, left_out, _ in parts for each in left_out]
        for prompt, reason in refused:
            self.say(f"refused {prompt}", f"the prompt {prompt[:60]!r} is left out: {reason}")
        if not numbered:
            reasons = ", ".join(sorted({reason for _, reason in refused}))
            raise ValueError(
                f"iteration {iteration}: none of its {len(refused)} prompts can be answered ({reasons}); shorten them, "
                "or lower sampling.max_new_tokens"
            )
        rollouts = tuple(numbered[number] for number in sorted(numbered))
        return Kept(Rollouts(rollouts, self.sampler.name, max(seconds for _, _, seconds in parts)), {})

    def _answerable(self, batch: Prompts) -> tuple[list[tuple[int, int]], dict[int, str]]:
        """Place and number of this rank's prompts that can be answered; the others' reasons by their place."""
        refused = self.sampler.refused(batch.prompts, self.sampling)
        places = [place for place, count in enumerate(batch.counts) if count and place not in refused]
        return [(place, batch.numbers[place]) for place in places], refused

    def _answer(
        self, batch: Prompts, seed: int, have: Mapping[int, Rollout]
    ) -> tuple[list[tuple[int, Rollout]], list[tuple[str, str]], float]:
        answerable, refused = self._answerable(batch)
        places = [place for place, number in answerable if number not in have]
        numbers = [batch.numbers[place] for place in places]
        found = self.sampler.generate([batch.prompts[place] for place in places], self.sampling, seed, numbers)
        left_out = [(str(batch.prompts[place]), reason) for place, reason in refused.items() if batch.counts[place]]
        return list(zip(numbers, found.groups, strict=True)), left_out, found.seconds

    def _write(self, iteration: int, key: str, kept: Kept) -> None:
        if self.files is not None and self.ranks.rank == 0:
            self.files.write(iteration, key, kept)


def _tokenless(answer: Answer | None) -> bool:
    return answer is None or not len(answer.tokens)


def _incomplete(rollout: Rollout) -> bool:
    """Whether an answer has no token, or there is none."""
    return not rollout.answers or any(map(_tokenless, rollout.answers))


def score(
    rollouts: tuple[Rollout, ...], rewards: Mapping[str, GroupScorer], ranks: AllRanks
) -> dict[str, Float[Tensor, " N"]]:
    """Each reward's value of each answer, float64; each rank scores the texts of its share.

    Errors: ValueError on every rank for a reward that fails on one of them; names it.
    """
    group_N = groups_of(rollouts)
    mine_N = group_N % ranks.count == ranks.rank
    groups = [rollout.text_group() for rollout in rollouts[ranks.rank :: ranks.count]]
    found = {}
    for name, scorer in rewards.items():

        def values(scorer: GroupScorer = scorer) -> Tensor:
            try:
                scores = checked_scores(scorer, groups)
            except RewardError as error:
                raise ValueError(error.reason) from error
            return torch.tensor([value for row in scores for value in row], dtype=torch.float64)

        values_N = torch.zeros(len(group_N), dtype=torch.float64)
        try:
            # A reward is anybody's code.
            values_N[mine_N] = ranks.together(values, (Exception,))
        except ValueError as error:
            raise ValueError(
                f"reward {name!r} failed ({error}); the answers are kept beside the checkpoints: mend it, and go on "
                "from the last one"
            ) from error
        found[name] = ranks.add_up(values_N)
    return found
