"""What is wrong with rewards of rollouts, in words.

Shape suffixes: N answers.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from grmlight.evaluation.group_scorer import GroupScorer
from grmlight.policy.online.experience import groups_of
from grmlight.policy.rollouts import Rollout


def unscored(name: str, values_N: Float[Tensor, " N"], rollouts: tuple[Rollout, ...], scorer: GroupScorer) -> str:
    """What to say of a reward that has no finite value for some answers; empty if it has."""
    bad_N = ~values_N.isfinite()
    if not bad_N.any():
        return ""
    reasons = sorted(set(getattr(scorer, "refused", {}).values()))
    because = f" ({', '.join(reasons)})" if reasons else ""
    return (
        f"reward {name!r} is not finite{because} for {int(bad_N.sum())} of {len(bad_N)} answers, which are left out: "
        f"{_some(rollouts, bad_N)}"
    )


def constant(name: str, values_N: Float[Tensor, " N"]) -> str:
    """What to say of a reward that is the same for all answers; empty if it is not."""
    known_N = values_N[values_N.isfinite()]
    if len(known_N) < 2 or known_N.max() > known_N.min():
        return ""
    return f"reward {name!r} is {known_N[0].item():g} for all {len(known_N)} answers: it tells nothing"


def wordless(rollouts: tuple[Rollout, ...]) -> str:
    """What to say where every answer is nothing but the end of text; empty otherwise."""
    empty_N = empty(rollouts)
    return f"all {len(empty_N)} answers are empty: the policy says nothing but its end of text" if empty_N.all() else ""


def empty(rollouts: tuple[Rollout, ...]) -> Bool[Tensor, " N"]:
    """Which answers have no text: nothing but the end of text, or other special tokens."""
    return torch.tensor([not answer.text.strip() for rollout in rollouts for answer in rollout.answers])


def _some(rollouts: tuple[Rollout, ...], chosen_N: Bool[Tensor, " N"], shown: int = 3) -> str:
    prompts: list[int] = groups_of(rollouts)[chosen_N].unique().tolist()
    texts = [str(rollouts[prompt].prompt)[:60] for prompt in prompts[:shown]]
    rest = f" and {len(prompts) - shown} more" if len(prompts) > shown else ""
    return "prompts " + ", ".join(map(repr, texts)) + rest
