"""What answers are rewarded by: reward models, and plain functions, opened by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grmlight.data.texts import TextGroup, final_answer
from grmlight.evaluation.group_scorer import GroupScorer, ScoringOptions, open_scorer


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
        """One reward a response, in the order given."""
        return [
            [float(self.function(_text(group), final_answer(response))) for response in group.responses]
            for group in groups
        ]


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
        found = found()
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
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward {spec!r}: no such folder, and it cannot be imported ({error})") from error


def _text(group: TextGroup) -> str:
    return group.prompt if isinstance(group.prompt, str) else group.prompt[-1]["content"]
