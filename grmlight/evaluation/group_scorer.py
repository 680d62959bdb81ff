"""GroupScorer: rewards of groups of text, by whatever can judge them.

Notable decisions:

- Prompts are shared and groups packed up to a budget of tokens; a larger group is split, its prompt repeated. No reward
  depends on that (1e-5 in float32).
- A group that cannot be scored has NaN rewards and a reason: nothing is dropped or cut in silence.
- Experts with given routing go by a group's category, which must be one of their tasks.
- Ranks that share one model (FSDP2) run equally many forwards; who has fewer packs repeats one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from grmlight.data.batch import GroupBatch
from grmlight.data.encode import TextEncoder, TokenGroup, cost, in_batches, pack, shared_prefix
from grmlight.data.labels import NONE
from grmlight.data.options import PrepareOptions
from grmlight.data.texts import TextGroup
from grmlight.data.tokenizer import load_tokenizer
from grmlight.models import ExpertsModel, Scorer, load_reward_model
from grmlight.models.judge import Judge
from grmlight.models.loading import read_kind

TOKENS_PER_FORWARD = 16_384

Part = tuple[int, int, TokenGroup]
"""A group's number, its first response here, and these responses."""

_FILLER: list[Part] = [(0, 0, TokenGroup((np.zeros(1, dtype=np.int64),), (0,)))]
"""What a rank without any pack runs while the others score."""


class GroupScorer(Protocol):
    """Anything that gives each response of a group a reward.

    Attributes:
        name: what it is called in reports.
    """

    name: str

    def score(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        """One reward a response, in the order given; NaN for all responses of a group that cannot be scored."""
        ...


class ModelScorer:
    """Scores text with a model that is called as `RewardModel` is.

    Args:
        model: the model; it is put in eval mode for each forward and back afterwards.
        tokenizer: its tokenizer.
        options: how it was trained to read text; a long group is refused or cut as they say.
        name: what it is called in reports.
        tokens_per_forward: tokens of one pack.
        progress: show a bar.

    Attributes:
        refused: of the last call, the reasons of groups that were not scored, by their place.
        truncated: of the last call, the places of groups whose prompt was cut.
        unseen: of the last call, the places of groups whose category the router of experts never saw.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        options: PrepareOptions | None = None,
        name: str = "model",
        tokens_per_forward: int = TOKENS_PER_FORWARD,
        progress: bool = True,
    ) -> None:
        if tokens_per_forward < 1:
            raise ValueError(f"tokens_per_forward must be at least 1, got {tokens_per_forward}")
        self.name = name
        self.tokens_per_forward = tokens_per_forward
        self.progress = progress
        self._encoder = TextEncoder(tokenizer, options or PrepareOptions())
        self._scorer = Scorer(model)
        self.refused: dict[int, str] = {}
        self.truncated: list[int] = []
        self.unseen: list[int] = []
        self._experts = model.experts_config if isinstance(model, ExpertsModel) else None

    def score(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        """One reward a response, in the order given; NaN for all responses of a refused group.

        On several ranks that share one model, call it on all of them.

        Errors: ValueError for a long group where the options say so, and for messages without a chat template.
        """
        rewards = [[math.nan] * len(group.responses) for group in groups]
        encoded = self._encode(groups)
        tasks = self._tasks(groups, encoded)
        self.refused = {number: each for number, each in enumerate(encoded) if isinstance(each, str)}
        kept = {number: each for number, each in enumerate(encoded) if isinstance(each, TokenGroup)}
        self.truncated = [number for number, each in kept.items() if each.cut]
        parts = [part for number, group in kept.items() for part in self._parts(number, group)]
        packs = list(in_batches(parts, lambda part: cost(part[2]), self.tokens_per_forward))
        forwards = self._forwards(len(packs))
        hidden = not self.progress
        for turn in tqdm(range(forwards), f"scoring with {self.name}", unit=" packs", delay=2, disable=hidden):
            mine = packs[turn] if turn < len(packs) else [*packs, _FILLER][0]
            found = iter(self._scorer.score(self._pack(mine, tasks)).tolist())
            for number, first, group in mine if turn < len(packs) else ():
                last = first + len(group.responses)
                rewards[number][first:last] = itertools.islice(found, len(group.responses))
        return rewards

    def _encode(self, groups: Sequence[TextGroup]) -> list[TokenGroup | str]:
        """The groups' tokens. Where ranks share the model, an error of one is everybody's: none waits for another."""
        if not self._scorer.sharded:
            return list(self._encoder.encode(groups))
        encoded: list[TokenGroup | str] = []
        faults = [""] * torch.distributed.get_world_size()
        try:
            encoded, fault = list(self._encoder.encode(groups)), ""
        except ValueError as error:
            fault = str(error)
        torch.distributed.all_gather_object(faults, fault)
        if found := [each for each in faults if each]:
            raise ValueError(found[0])
        return encoded

    def _tasks(self, groups: Sequence[TextGroup], encoded: list[TokenGroup | str]) -> dict[int, int]:
        """Of experts, the number of each group's task; where it is given, a group of none of them is refused."""
        if self._experts is None:
            return {}
        numbers = {task: number for number, task in enumerate(self._experts.tasks)}
        found = {place: numbers.get(group.category, NONE) for place, group in enumerate(groups)}
        self.unseen = [place for place, task in found.items() if task == NONE and not isinstance(encoded[place], str)]
        for place in self.unseen if self._experts.routing == "given" else ():
            encoded[place] = "unseen_category"
        return found

    def _pack(self, parts: Sequence[Part], tasks: dict[int, int]) -> GroupBatch:
        batch = pack([group for *_, group in parts])
        if self._experts is None or self._experts.routing != "given":
            return batch
        # What only fills a rank's share may be of any task.
        return dataclasses.replace(batch, task_G=torch.tensor([max(tasks.get(number, 0), 0) for number, *_ in parts]))

    def _parts(self, number: int, group: TokenGroup) -> Iterator[Part]:
        """A group as a whole, or in parts that fit the budget; a single response always does."""
        shared, first = shared_prefix(group.responses), 0
        while first < len(group.responses):
            tokens, last = shared, first
            while last < len(group.responses):
                tokens += len(group.responses[last]) - shared
                if tokens > self.tokens_per_forward and last > first:
                    break
                last += 1
            chosen = slice(first, last)
            yield (
                number,
                first,
                dataclasses.replace(group, responses=group.responses[chosen], starts=group.starts[chosen]),
            )
            first = last

    def _forwards(self, packs: int) -> int:
        """As many as the rank with the most packs has, where all of them must run the model equally often."""
        if not self._scorer.sharded:
            return packs
        count = torch.tensor(packs, device=next(self._scorer.model.parameters()).device)
        torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX)
        return int(count)


@dataclasses.dataclass(frozen=True)
class ScoringOptions:
    """What may be decided anew when a model of a folder scores.

    Attributes:
        max_length: longest prompt + response, in tokens; None for the model's own preparation options.
        on_overlong: for a longer group: "drop" it, "truncate_prompt", or "raise"; None likewise.
        tokens_per_forward: tokens of one pack.
    """

    max_length: int | None = None
    on_overlong: Literal["drop", "truncate_prompt", "raise"] | None = None
    tokens_per_forward: int = TOKENS_PER_FORWARD

    def over(self, options: PrepareOptions) -> PrepareOptions:
        """A model's own options, with these in their place."""
        given = {"max_length": self.max_length, "on_overlong": self.on_overlong}
        return dataclasses.replace(options, **{name: value for name, value in given.items() if value is not None})


def open_scorer(path: Path, options: ScoringOptions | None = None) -> GroupScorer:
    """The scorer of a model folder or a run directory, by the folder's kind.

    Errors: ValueError in one line for what holds no model, or one that cannot be loaded.
    """
    # It imports this room.
    from grmlight.export import model_folder

    folder = model_folder(path)
    return _OPENERS.get(read_kind(folder), _open_model)(folder, str(path), options or ScoringOptions())


def _open_model(folder: Path, name: str, options: ScoringOptions) -> GroupScorer:
    from grmlight.export import load_options

    device = "cuda" if torch.cuda.is_available() else "cpu"
    own = load_options(folder)
    tokenizer = load_tokenizer(str(folder), own.chat_template)
    model = load_reward_model(folder).to(device)
    return ModelScorer(model, tokenizer, options.over(own), name, options.tokens_per_forward)


def _open_judge(folder: Path, name: str, options: ScoringOptions) -> GroupScorer:
    if options.max_length is not None or options.on_overlong is not None:
        raise ValueError(f"{name}: a judge reads whole texts; drop max_length and on_overlong")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Judge.from_pretrained(folder, options.tokens_per_forward).to(device)


_OPENERS: dict[str, Callable[[Path, str, ScoringOptions], GroupScorer]] = {"judge": _open_judge}
"""By the kind of folder; every other kind is opened as a reward model."""
