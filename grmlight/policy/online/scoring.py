"""Rewards of an iteration's rollouts, shared out to the ranks, and what is wrong with them.

Shape suffixes: N answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grmlight.evaluation.group_scorer import GroupScorer
from grmlight.policy.online.experience import groups_of
from grmlight.policy.rollouts import Rollout


def score(
    rollouts: tuple[Rollout, ...],
    rewards: Mapping[str, GroupScorer],
    rank: int = 0,
    ranks: int = 1,
    add_up: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> dict[str, Float[Tensor, " N"]]:
    """Each reward's value of each answer, float64; each rank scores the texts of its share.

    Args:
        rollouts: of all ranks.
        rewards: by name.
        rank, ranks: this rank, and their number.
        add_up: the sum of a tensor over all ranks.

    Errors: ValueError on every rank for a reward that fails on one of them; names it.
    """
    group_N = groups_of(rollouts)
    mine_N = group_N % ranks == rank
    groups = [rollout.text_group() for rollout in rollouts[rank::ranks]]
    found = {}
    for name, scorer in rewards.items():
        values_N = torch.zeros(len(group_N), dtype=torch.float64)
        reason = ""
        try:
            values = [value for group in scorer.score(groups) for value in group]
            values_N[mine_N] = torch.tensor(values, dtype=torch.float64)
        except Exception as error:  # noqa: BLE001 - a reward is anybody's code, and the other ranks wait
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if add_up(torch.tensor([float(bool(reason))], dtype=torch.float64)).item():
            raise ValueError(
                f"reward {name!r} failed ({reason or 'on another rank'}); the answers are kept beside the checkpoints: "
                "mend it, and go on from the last one"
            )
        found[name] = add_up(values_N)
    return found


def unscored(name: str, values_N: Float[Tensor, " N"], rollouts: tuple[Rollout, ...], scorer: GroupScorer) -> str:
    """What to say of a reward that has no finite value for some answers; empty if it has."""
    bad_N = ~values_N.isfinite()
    if not bad_N.any():
        return ""
    reasons = sorted(set(getattr(scorer, "refused", {}).values()))
    because = f" ({', '.join(reasons)})" if reasons else ""
    return (
        f"reward {name!r} is not finite{because} for {int(bad_N.sum())} of {len(bad_N)} answers, which teach nothing: "
        f"{_some(rollouts, bad_N)}"
    )


def constant(name: str, values_N: Float[Tensor, " N"]) -> str:
    """What to say of a reward that is the same for all answers; empty if it is not."""
    known_N = values_N[values_N.isfinite()]
    if len(known_N) < 2 or known_N.max() > known_N.min():
        return ""
    return f"reward {name!r} is {known_N[0].item():g} for all {len(known_N)} answers: it teaches nothing"


def empty(rollouts: tuple[Rollout, ...]) -> Bool[Tensor, " N"]:
    """Which answers have no text: nothing but the end of text, or other special tokens."""
    return torch.tensor([not answer.text.strip() for rollout in rollouts for answer in rollout.answers])


def _some(rollouts: tuple[Rollout, ...], chosen_N: Bool[Tensor, " N"], shown: int = 3) -> str:
    prompts: Sequence[int] = groups_of(rollouts)[chosen_N].unique().tolist()
    texts = [str(rollouts[prompt].prompt)[:60] for prompt in prompts[:shown]]
    rest = f" and {len(prompts) - shown} more" if len(prompts) > shown else ""
    return "prompts " + ", ".join(map(repr, texts)) + rest
