"""What answers are rewarded by: reward models, ensembles and plain functions, opened by name; and several as one.

Shape suffixes: K rewards, N answers.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from grmlight.data.texts import Response, TextGroup, final_answer
from grmlight.evaluation.group_scorer import GroupScorer, ScoringOptions, open_scorer
from grmlight.models.aggregation import aggregate, check_aggregation
from grmlight.models.memory import is_memory_error

Aggregator = Literal["mean", "wco", "uwo", "sum"]
"""How several rewards make one score; `grmlight.models.aggregation` has the first three."""


class RewardError(ValueError):
    """A reward that failed, in one line: its name, the prompt, and the cause.

    Attributes:
        reason: the cause and the prompt.
    """

    def __init__(self, name: str, group: TextGroup | None, cause: object) -> None:
        at = "" if group is None else f", at prompt {_text(group)[:60]!r}"
        what = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else cause
        self.reason = f"{what}{at}"
        super().__init__(f"reward {name} failed{at} ({what}); mend it")


class FunctionReward:
    """A plain function of prompt and response as a reward.

    Args:
        function: takes the prompt's text (its last message) and the response's, gives a number.
        name: what it is called in reports.
    """

    def __init__(self, function: Callable[[str, str], float], name: str) -> None:
        self.function = function
        self.name = name

    def score(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        """One reward a response, in the order given. Errors: RewardError."""
        return [[self._number(group, response) for response in group.responses] for group in groups]

    def _number(self, group: TextGroup, response: Response) -> float:
        try:
            found = self.function(_text(group), final_answer(response))
        except Exception as error:
            raise RewardError(self.name, group, error) from error
        try:
            return float(found)
        except (TypeError, ValueError) as error:
            raise RewardError(self.name, group, f"it returned {found!r}, which is no number") from error


def checked_scores(reward: GroupScorer, groups: Sequence[TextGroup]) -> list[list[float]]:
    """What a reward of anyone's gives to some groups.

    Errors: RewardError for a reward that raises, with the first prompt at which it does, and for one that does not give
    a number an answer; what is out of memory or on the disk stays what it is.
    """
    try:
        found = reward.score(groups)
    except (RewardError, OSError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and is_memory_error(error):
            raise
        raise RewardError(reward.name, next((each for each in groups if _fails(reward, each)), None), error) from error
    try:
        numbers = [[float(each) for each in row] for row in found]
    except (TypeError, ValueError):
        numbers = []
    if [len(row) for row in numbers] != [len(group.responses) for group in groups]:
        raise ValueError(f"reward {reward.name}: did not give one number an answer; `score` must, in the order given")
    return numbers


def _fails(reward: GroupScorer, group: TextGroup) -> bool:
    try:
        reward.score([group])
    except Exception:
        return True
    return False


def open_reward(spec: str, options: ScoringOptions | None = None) -> GroupScorer:
    """The reward that a word means.

    Args:
        spec: a model folder, a run directory, or the path of a class that scores groups or of a function of prompt and
            response, as in `grmlight.lab.GoldReward`.
        options: how a model reads long texts.

    Errors: ValueError in one line for what is none of these.
    """
    if Path(spec).exists():
        return open_scorer(Path(spec), options)
    if "/" in spec or "." not in spec:
        raise ValueError(f"reward {spec!r}: no such folder, and no path of a class or function; check it")
    found = _imported(spec)
    if isinstance(found, type):
        try:
            found = found()
        except (ValueError, OSError):
            raise
        except Exception as error:
            raise ValueError(
                f"reward {spec!r}: cannot be made without arguments ({type(error).__name__}: {error}); name a class "
                "that needs none"
            ) from error
    if hasattr(found, "score"):
        return found
    if callable(found):
        function: Callable[..., Any] = found
        return FunctionReward(function, spec.rsplit(".", 1)[-1])
    raise ValueError(f"reward {spec!r}: is neither a class with `score` nor a function of prompt and response")


def _imported(spec: str) -> Any:
    module, name = spec.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ValueError(
            f"reward {spec!r}: no such folder, and it cannot be imported ({type(error).__name__}: {error}); check it"
        ) from error


def _text(group: TextGroup) -> str:
    return group.prompt if isinstance(group.prompt, str) else group.prompt[-1]["content"]


@dataclasses.dataclass(frozen=True)
class RewardSource:
    """A reward, and what it is called.

    Attributes:
        spec: see `open_reward`.
        name: in logs and checkpoints; without one the reward's own.
        share: it is a LoRA adapter of the model that an online policy with LoRA begins as, and needs no backbone of its
            own: it is loaded onto the policy's.
    """

    spec: str
    name: str = ""
    share: bool = False


RewardLike = str | RewardSource | GroupScorer | Callable[[str, str], float]
"""A spec, a spec with a name, something that scores groups, or a function of prompt and response."""


def open_rewards(
    sources: Sequence[Any], share: Callable[[RewardSource], GroupScorer] | None = None
) -> dict[str, GroupScorer]:
    """Several rewards by their names, in order.

    Args:
        sources: each a `RewardLike`.
        share: opens those that share the policy's backbone; without it there is none to share.

    Errors: ValueError for two of one name, for one that is to share what is not there, and as `open_reward`.
    """
    found: dict[str, GroupScorer] = {}
    for source in sources:
        name, scorer = _named(source, share)
        if name in found:
            raise ValueError(f"two rewards are named {name!r}; give one of them another `name`")
        found[name] = scorer
    return found


def _named(source: Any, share: Callable[[RewardSource], GroupScorer] | None) -> tuple[str, GroupScorer]:
    if isinstance(source, str):
        source = RewardSource(source)
    if isinstance(source, RewardSource):
        if source.share and share is None:
            raise ValueError(f"reward {source.spec!r}: there is no policy whose backbone it could share; drop share")
        scorer = share(source) if source.share and share is not None else open_reward(source.spec)
        # Names are parts of metrics' names, in which a slash begins another group.
        return source.name or scorer.name.strip("/").replace("/", "_"), scorer
    if hasattr(source, "score"):
        return source.name, source
    if not callable(source):
        raise ValueError(f"reward {source!r}: is neither a spec, nor scores groups, nor is a function")  # noqa: TRY004
    name = getattr(source, "__name__", type(source).__name__)
    function: Any = source
    return name, FunctionReward(function, name)


def check_aggregator(aggregator: str, variance_weight: float) -> None:
    """Refuse an unknown name and a factor that is none. Errors: ValueError in one line."""
    if aggregator not in get_args(Aggregator):
        raise ValueError(f"aggregator must be one of {', '.join(get_args(Aggregator))}, got {aggregator!r}")
    check_aggregation("mean", variance_weight)


def combine(
    rewards: Mapping[str, Float[Tensor, " N"]], aggregator: Aggregator, variance_weight: float = 0.5
) -> Float[Tensor, " N"]:
    """One score of several rewards; NaN where one of them is.

    Args:
        rewards: of each answer, by name. "wco" and "uwo" compare them, so they need one zero and one scale: those of an
            ensemble's folder have, rewards trained apart do not.
        aggregator: "sum", or one of an ensemble's (`grmlight.models.aggregation`).
        variance_weight: lambda of "uwo".

    Errors: ValueError for an unknown aggregator.
    """
    rewards_KN = torch.stack([*rewards.values()])
    check_aggregator(aggregator, variance_weight)
    if aggregator == "sum":
        return rewards_KN.sum(0)
    return aggregate(rewards_KN, aggregator, variance_weight)
