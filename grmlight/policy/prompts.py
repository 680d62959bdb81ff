"""PromptDataModule: prompts from files to the steps of policy optimization.

The order is a pure function of (prompts, seed, epoch), and a step's prompts are the same for any number of ranks, as
with `grmlight.data.loader`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from grmlight._data_rs import deal_step, epoch_order
from grmlight.data.datamodule import Sources, TextDataModule, named
from grmlight.data.loader import Resumable
from grmlight.data.options import PrepareOptions
from grmlight.data.texts import PromptText
from grmlight.data.tokenizer import load_tokenizer
from grmlight.models.backbone import BackboneConfig, read_config
from grmlight.policy.huggingface import positions
from grmlight.policy.read_prompts import NumberedPrompt, numbered_prompts
from grmlight.policy.read_prompts import read_prompts as read_prompts
from grmlight.policy.reader import PromptReader


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """One rank's prompts of a step.

    Attributes:
        prompts: what shall be answered.
        numbers: for each its place among all prompts of the step: with a seed of the step's, it decides what is sampled
            (`Sampler.generate`), on whichever rank that is.
        counts: for each 1, or 0 for a prompt repeated to fill an empty share, as in `GroupBatch.count_G`.
        prompts_in_step: of all ranks, repeated ones not counted.
        step: optimizer step within the epoch, from 0.
        epoch: times that all prompts have been gone through before.
    """

    prompts: tuple[PromptText, ...]
    numbers: tuple[int, ...]
    counts: tuple[int, ...]
    prompts_in_step: int
    step: int
    epoch: int

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The same: text is on no device."""
        return self


class PromptLoader:
    """An iterable over one rank's steps.

    Args:
        prompts: all of them.
        costs: tokens of each, by which they are dealt to ranks.
        prompts_per_step: of one step, over all ranks.
        seed: of the order; None goes through the prompts as they are.
        rank: this process among the data-parallel ones.
        ranks: their number.
    """

    def __init__(
        self,
        prompts: Sequence[PromptText],
        costs: Sequence[int],
        prompts_per_step: int,
        seed: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if prompts_per_step < 1:
            raise ValueError(f"prompts_per_step must be at least 1, got {prompts_per_step}")
        self.prompts, self.costs = prompts, np.array(costs, np.int64)
        self.prompts_per_step, self.seed = prompts_per_step, seed
        self.rank, self.ranks = rank, ranks
        self._epoch = 0
        self._steps = 0

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch; the last one may hold fewer prompts."""
        return -(-len(self.prompts) // self.prompts_per_step)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[PromptBatch]:
        epoch, count = self._epoch, len(self.prompts)
        order = np.arange(count) if self.seed is None else epoch_order(count, self.seed, epoch)
        for step in range(self._steps, self.steps_per_epoch):
            batch = self._share(order[step * self.prompts_per_step : (step + 1) * self.prompts_per_step], step, epoch)
            # Lightning never asks for one more, and a checkpoint is written between steps.
            self._advance(step)
            yield batch

    def _share(self, chosen: np.ndarray, step: int, epoch: int) -> PromptBatch:
        ((places, counts),) = deal_step(self.costs[chosen], self.ranks, 1)[self.rank]
        return PromptBatch(
            prompts=tuple(self.prompts[place] for place in chosen[places].tolist()),
            numbers=tuple(places.tolist()),
            counts=tuple(int(count) for count in counts),
            prompts_in_step=len(chosen),
            step=step,
            epoch=epoch,
        )

    def _advance(self, step: int) -> None:
        """Called when a step is handed out. An evaluation begins at the beginning again."""


class TrainingPromptLoader(Resumable, PromptLoader):
    """A PromptLoader that a checkpoint resumes."""

    def _order_of(self) -> dict[str, Any]:
        return {"prompts_per_step": self.prompts_per_step, "seed": self.seed, "prompts": len(self.prompts)}


class PromptDataModule(TextDataModule):
    """Prompts for policy optimization.

    Args:
        train: where prompts come from, see `read_prompts`.
        val: the same for validation, or several by name.
        tokenizer: the policy's: a hub name, a folder, or `package:MODULE/PATH`.
        prepare: how prompts become tokens. A prompt that leaves no room for an answer within `max_length`, or within
            the positions of the policy in training, is left out, or cut where `on_overlong` is "truncate_prompt".
        max_new_tokens: that room.
        prompts_per_step: prompts of one optimizer step, over all devices.
        eval_prompts: prompts of one evaluation step, over all devices.
        seed: of the training order.

    Attributes:
        prompts: those that are used, by the names of their sets; the training set is "train".
        reports: for each set: source, rows read, used, and refused {reason: [row]}.
    """

    def __init__(
        self,
        train: str | None = None,
        val: Sources = None,
        tokenizer: str = "",
        prepare: PrepareOptions | None = None,
        max_new_tokens: int = 64,
        prompts_per_step: int = 16,
        eval_prompts: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.tokenizer, self.options = tokenizer, prepare or PrepareOptions()
        self.max_new_tokens = max_new_tokens
        self.prompts_per_step, self.eval_prompts, self.seed = prompts_per_step, eval_prompts, seed
        self.prompts: dict[str, list[PromptText]] = {}
        self.reports: dict[str, dict[str, Any]] = {}
        self._costs: dict[str, list[int]] = {}

    @property
    def sets(self) -> dict[str, str]:
        """The sets' sources by name: "train" and those for validation."""
        return ({"train": self.train} if self.train else {}) | named(self.val, "val")

    def read(self, name: str, source: str) -> list[NumberedPrompt]:
        """All prompts of a set."""
        return numbered_prompts(source)

    def setup(self, stage: str | None = None) -> None:
        """Read the prompts, on every rank alike; rank 0 says what was found.

        Errors: ValueError if there are none, or none can be used.
        """
        if stage == "fit" and "train" not in self.sets:
            raise ValueError("there are no prompts to train on; set data.init_args.train to a file")
        self.check_tokenizer()
        tokenizer = load_tokenizer(self.tokenizer, self.options.chat_template)
        reader = PromptReader(tokenizer, self.options, self._positions())
        if self.trainer is not None and self.sets.keys() == {"train"}:
            # Lightning would warn that validation has no data.
            self.trainer.limit_val_batches = 0
        for name, source in self.sets.items():
            self._take(name, source, reader)
            if self.trainer is None or self.trainer.is_global_zero:
                print(describe(name, self.reports[name]))

    def _positions(self) -> int | None:
        """Tokens that the policy in training reads at once, by its config: it is not built yet."""
        backbone = None if self.trainer is None else getattr(self.trainer.lightning_module, "backbone", None)
        return positions(read_config(backbone)) if isinstance(backbone, BackboneConfig) else None

    def _take(self, name: str, source: str, reader: PromptReader) -> None:
        found = self.read(name, source)
        encoded = reader.encode([each.prompt for each in found], self.max_new_tokens)
        refused: dict[str, list[int]] = {}
        for each, tokens in zip(found, encoded, strict=True):
            if isinstance(tokens, str):
                refused.setdefault(tokens, []).append(each.row)
        kept = [
            (each.prompt, tokens) for each, tokens in zip(found, encoded, strict=True) if not isinstance(tokens, str)
        ]
        self.reports[name] = {"source": source, "rows": len(found), "used": len(kept), "refused": refused}
        if not kept:
            raise ValueError(f"none of the prompts can be used: {' '.join(describe(name, self.reports[name]).split())}")
        self.prompts[name] = [prompt for prompt, _ in kept]
        self._costs[name] = [len(tokens) + self.max_new_tokens for _, tokens in kept]

    def train_dataloader(self) -> TrainingPromptLoader:
        """Steps in the order of (seed, epoch)."""
        given = self.prompts["train"], self._costs["train"], self.prompts_per_step, self.seed
        return TrainingPromptLoader(*given, **self.place())

    def val_dataloader(self) -> list[PromptLoader]:
        """One loader a validation set, in the order given."""
        return [
            PromptLoader(self.prompts[name], self._costs[name], self.eval_prompts, **self.place())
            for name in self.sets
            if name != "train"
        ]


def describe(name: str, report: dict[str, Any]) -> str:
    """A few lines: prompts read, used and refused, with the first rows of each reason."""
    refused = sum(len(rows) for rows in report["refused"].values())
    lines = [f"{name}: {report['source']}: {report['rows']} prompts read, {report['used']} used, {refused} refused"]
    for reason, rows in sorted(report["refused"].items()):
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        lines.append(f"  refused {len(rows)}: {reason.replace('_', ' ')} (rows {shown})")
    return "\n".join(lines)
