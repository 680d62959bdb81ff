"""Experience: the rollouts of one iteration, of all ranks, with all that is known of their tokens.

Notable decisions:

- Every rank holds all of it: rollouts are small beside what they cost. So advantages and minibatches are the same on
  every rank without asking, whatever the number of ranks.
- An answer without a finite reward stays in it, and teaches nothing.

Shape suffixes: P prompts, N answers, L answer tokens laid end to end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grmlight.policy.online.advantages import (
    Advantage,
    Spread,
    gae,
    group_normalized,
    leave_one_out,
    rewards_to_go,
)
from grmlight.policy.online.mixing import KL
from grmlight.policy.rollouts import Rollout

SCORE = "score"
"""The name of the one stream of rewards that there is without a mixer: the score, minus the KL penalty."""


@dataclasses.dataclass(frozen=True)
class Experience:
    """One iteration's rollouts.

    Attributes:
        rollouts: one a prompt, in the order of the prompts.
        rewards: each reward's value of each answer, float64, NaN where there is none.
        scores_N: what the answers are worth: the rewards combined and shaped; NaN where that is not finite.
        logps_L: under the policy as it was when it sampled, float64.
        reference_logps_L: under the reference.
        values: of the critic before each token, by stream; none without a critic.
    """

    rollouts: tuple[Rollout, ...]
    rewards: Mapping[str, Float[Tensor, " N"]]
    scores_N: Float[Tensor, " N"]
    logps_L: Float[Tensor, " L"]
    reference_logps_L: Float[Tensor, " L"]
    values: Mapping[str, Float[Tensor, " L"]]

    @property
    def group_N(self) -> Int[Tensor, " N"]:
        """The prompt of each answer."""
        return groups_of(self.rollouts)

    @property
    def tokens_N(self) -> Int[Tensor, " N"]:
        """Tokens of each answer."""
        return lengths_of(self.rollouts)

    @property
    def response_L(self) -> Int[Tensor, " L"]:
        """The answer of each token."""
        return torch.repeat_interleave(torch.arange(len(self.tokens_N)), self.tokens_N)

    @property
    def known_N(self) -> Bool[Tensor, " N"]:
        """Which answers have a score."""
        return self.scores_N.isfinite()

    @property
    def k1_L(self) -> Float[Tensor, " L"]:
        """Log-ratio of policy and reference at each token, in nats."""
        return self.logps_L - self.reference_logps_L

    @property
    def kl_N(self) -> Float[Tensor, " N"]:
        """Its sum over each answer: an estimate of the KL that may be negative."""
        return sum_by_answer(self.k1_L, self.tokens_N)


@dataclasses.dataclass(frozen=True)
class Streams:
    """What an iteration's tokens are worth, by stream.

    Attributes:
        rewards: of each token.
        advantages: of each token; 0 for answers without a score.
        returns: what the critic shall say before each token; none without a critic.
        returned_N: of each answer the discounted sum of its rewards.
    """

    rewards: Mapping[str, Float[Tensor, " L"]]
    advantages: Mapping[str, Float[Tensor, " L"]]
    returns: Mapping[str, Float[Tensor, " L"]]
    returned_N: Mapping[str, Float[Tensor, " N"]]


def token_rewards(experience: Experience, kl_coefficient: float) -> dict[str, Float[Tensor, " L"]]:
    """The one stream of rewards: each answer's score at its last token, minus the KL penalty at every token."""
    at_end_L = at_last(experience.scores_N.nan_to_num(0.0), experience.tokens_N)
    return {SCORE: at_end_L - kl_coefficient * experience.k1_L}


def separate_rewards(experience: Experience) -> dict[str, Float[Tensor, " L"]]:
    """A stream for each reward, for a mixer: its value at the last token; and the negative log-ratio of each token."""
    streams = {KL: -experience.k1_L}
    for name, values_N in experience.rewards.items():
        streams[name] = at_last(values_N.nan_to_num(0.0, 0.0, 0.0), experience.tokens_N)
    return streams


def streams(
    experience: Experience,
    rewards: Mapping[str, Float[Tensor, " L"]],
    advantage: Advantage,
    gamma: float,
    lam: float,
    spread: Spread,
) -> Streams:
    """Advantages and returns of each stream of rewards.

    Args:
        experience: the rollouts.
        rewards: of each token, by stream.
        advantage: "gae" by token, with the critic's values; "rloo" and "grpo" of whole answers among their prompt's.
        gamma: discount a token, of "gae".
        lam: of "gae".
        spread: what divides the advantages of "grpo".
    """
    tokens_N, group_N, known_N = experience.tokens_N, experience.group_N, experience.known_N
    known_L = known_N[experience.response_L]
    discount = gamma if advantage == "gae" else 1.0
    advantages, returns, returned = {}, {}, {}
    first_N = tokens_N.cumsum(0) - tokens_N
    for name, rewards_L in rewards.items():
        returned[name] = rewards_to_go(rewards_L, tokens_N, discount)[first_N]
        if advantage == "gae":
            values_L = experience.values[name]
            found_L = gae(rewards_L, values_L, tokens_N, gamma, lam)
            returns[name] = found_L + values_L
        else:
            worth_N = returned[name].where(known_N, torch.nan)
            found_N = (
                leave_one_out(worth_N, group_N) if advantage == "rloo" else group_normalized(worth_N, group_N, spread)
            )
            found_L = found_N[experience.response_L]
        advantages[name] = found_L.where(known_L, 0.0)
    return Streams(rewards, advantages, returns, returned)


def at_last(values_N: Float[Tensor, " N"], tokens_N: Int[Tensor, " N"]) -> Float[Tensor, " L"]:
    """A value of each answer at its last token, 0 elsewhere."""
    values_L = values_N.new_zeros(int(tokens_N.sum()))
    values_L[tokens_N.cumsum(0) - 1] = values_N
    return values_L


def sum_by_answer(values_L: Float[Tensor, " L"], tokens_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Sum a value of each token over its answer."""
    response_L = torch.repeat_interleave(torch.arange(len(tokens_N)), tokens_N)
    return values_L.new_zeros(len(tokens_N)).index_add(0, response_L, values_L)


def groups_of(rollouts: tuple[Rollout, ...]) -> Int[Tensor, " N"]:
    """The prompt of each answer."""
    counts = torch.tensor([len(rollout.answers) for rollout in rollouts])
    return torch.repeat_interleave(torch.arange(len(rollouts)), counts)


def lengths_of(rollouts: tuple[Rollout, ...]) -> Int[Tensor, " N"]:
    """Tokens of each answer."""
    return torch.tensor([len(answer.tokens) for rollout in rollouts for answer in rollout.answers])
