"""Loaders: deal steps to ranks and packs, and know where they stand.

Notable decisions:

- The order is a pure function of (store, seed, epoch); the deal of (order, pairs_per_step, ranks, packs).
- Numbers of the store's responses that a run computed (`grmlight.data.sidecar`) travel with the packs, as do the
  groups' tasks and capabilities (`grmlight.data.labels`).
- The state moves on before a step's last pack is handed out: Lightning stops after that many packs and never asks for
  one more, and a checkpoint is written only then.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from grmlight._data_rs import Store, deal_steps, epoch_order
from grmlight.data.batch import GroupBatch
from grmlight.data.labels import GroupLabels
from grmlight.data.sidecar import ResponseValues


@dataclasses.dataclass(frozen=True)
class Deal:
    """What one pack of a rank holds.

    Attributes:
        groups: groups of the store.
        counts: for each of them 1, or 0 for a group repeated to fill an empty share.
        groups_in_step: see `GroupBatch`, as are `step` and `micro_batch`.
    """

    groups: np.ndarray
    counts: np.ndarray
    groups_in_step: int
    step: int
    micro_batch: int


@dataclasses.dataclass(frozen=True)
class Dealt:
    """What the packs of some steps hold: pack p of rank r in step s is number (s * ranks + r) * packs + p.

    Attributes:
        groups: groups of the store, pack after pack.
        counts: for each of them 1, or 0 for a group repeated to fill an empty share.
        bounds: where each pack begins, and where the last one ends.
    """

    groups: np.ndarray
    counts: np.ndarray
    bounds: np.ndarray


STEPS_AT_ONCE = 256
"""Steps dealt in one call: enough that the call costs nothing, few enough that going on is fast."""

Select = Callable[[GroupBatch, Deal], GroupBatch]
"""Turns a pack into what is trained on."""


class PackLoader(ABC):
    """An iterable over the packs of one rank. Subclasses say what the packs of a step hold.

    Args:
        store: the prepared data.
        rank: this process among the data-parallel ones.
        ranks: their number.
        packs: packs a step for each rank: `accumulate_grad_batches` in training, 1 in evaluation.
        seed: seed of the order, from 0 to 2**64 - 1; None goes through the store as it is.
        reference_logps: of the store's responses; each pack carries those of its own.
        labels: tasks and capabilities of the store's groups; likewise.
        select: what each pack is turned into.
    """

    def __init__(
        self,
        store: Store,
        rank: int = 0,
        ranks: int = 1,
        packs: int = 1,
        seed: int | None = None,
        reference_logps: ResponseValues | None = None,
        labels: GroupLabels | None = None,
        select: Select | None = None,
    ) -> None:
        if seed is not None and not 0 <= seed < 2**64:
            raise ValueError(f"the seed of the order must be from 0 to 2**64 - 1, got {seed}")
        if not 0 <= rank < ranks or packs < 1:
            raise ValueError(f"rank {rank} of {ranks} with {packs} packs each cannot be dealt to")
        self.store = store
        self.rank, self.ranks, self.packs = rank, ranks, packs
        self.seed = seed
        self.reference_logps = reference_logps
        self.labels = labels
        self.select = select
        self.costs = store.costs
        self._epoch = 0
        self._steps = 0

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Steps an epoch; the last one may hold less."""

    @abstractmethod
    def deals(self) -> Iterator[Deal]:
        """What the packs hold, in the order of the iteration, without packing anything."""

    @abstractmethod
    def _dealt(self) -> Dealt:
        """What the packs of all ranks hold in this epoch."""

    def __len__(self) -> int:
        return self.steps_per_epoch * self.packs

    def __iter__(self) -> Iterator[GroupBatch]:
        for deal in self.deals():
            if deal.micro_batch + 1 == self.packs:
                self._advance(deal.step)
            yield self.batch(deal)

    def batch(self, deal: Deal) -> GroupBatch:
        """Pack a deal."""
        arrays = self.store.pack(deal.groups, deal.counts)
        if self.reference_logps is not None:
            arrays["reference_logps_N"] = self.reference_logps.of(deal.groups)
        if self.labels is not None:
            arrays |= self.labels.of(deal.groups)
        batch = GroupBatch.from_arrays(
            arrays, deal.groups_in_step, step=deal.step, micro_batch=deal.micro_batch, packs=self.packs
        )
        return batch if self.select is None else self.select(batch, deal)

    def imbalance(self) -> tuple[float, float]:
        """Tokens of the busiest rank / mean tokens of a rank: the mean over this epoch's steps, and over all of it."""
        dealt = self._dealt()
        tokens = np.add.reduceat(self.costs[dealt.groups], dealt.bounds[:-1])
        # Groups that fill an empty share count: their work is done.
        tokens_SR = tokens.reshape(-1, self.ranks, self.packs).sum(2)
        totals_R = tokens_SR.sum(0)
        return float((tokens_SR.max(1) / tokens_SR.mean(1)).mean()), float(totals_R.max() / totals_R.mean())

    def _order(self, epoch: int) -> np.ndarray:
        if self.seed is None:
            return np.arange(len(self.store), dtype=np.int64)
        return epoch_order(len(self.store), self.seed, epoch)

    def _own(self, dealt: Dealt, first_step: int) -> Iterator[Deal]:
        """This rank's packs of some steps."""
        bounds, shares = dealt.bounds.tolist(), self.ranks * self.packs
        for start in range(0, len(bounds) - 1, shares):
            mine = start + self.rank * self.packs
            groups_in_step = int(dealt.counts[bounds[start] : bounds[start + shares]].sum())
            for pack in range(self.packs):
                place = slice(bounds[mine + pack], bounds[mine + pack + 1])
                step = first_step + start // shares
                yield Deal(dealt.groups[place], dealt.counts[place], groups_in_step, step, pack)

    def _advance(self, step: int) -> None:  # noqa: B027 - most loaders count nothing
        """Called when a step is done. An evaluation begins at the beginning again, wherever the last one stopped."""


class GroupLoader(PackLoader):
    """A PackLoader whose steps have a number of groups, shared out among ranks and packs by their tokens.

    Args:
        store: the prepared data.
        pairs_per_step: groups of one step over all ranks and packs.
        rank: see `PackLoader`.
        ranks: likewise.
        packs: likewise.
        options: likewise.
    """

    def __init__(
        self, store: Store, pairs_per_step: int, rank: int = 0, ranks: int = 1, packs: int = 1, **options: Any
    ) -> None:
        if pairs_per_step < 1:
            raise ValueError(f"pairs_per_step must be at least 1, got {pairs_per_step}")
        super().__init__(store, rank, ranks, packs, **options)
        self.pairs_per_step = pairs_per_step

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch; the last one may hold fewer groups."""
        return -(-len(self.store) // self.pairs_per_step)

    def deals(self) -> Iterator[Deal]:
        """What the packs hold, in the order of the iteration, without packing anything."""
        order = self._order(self._epoch)
        for first in range(self._steps, self.steps_per_epoch, STEPS_AT_ONCE):
            groups = order[first * self.pairs_per_step : (first + STEPS_AT_ONCE) * self.pairs_per_step]
            yield from self._own(self._deal(groups), first)

    def _dealt(self) -> Dealt:
        return self._deal(self._order(self._epoch))

    def _deal(self, groups: np.ndarray) -> Dealt:
        """What the packs of all ranks hold, where these groups are some whole steps, and perhaps a short one."""
        positions, counts, bounds = deal_steps(self.costs[groups], self.pairs_per_step, self.ranks, self.packs)
        return Dealt(groups[positions], counts, bounds)


class Resumable(ABC):
    """What a checkpoint needs of a loader that has `steps_per_epoch`: its state is equal on every rank."""

    _epoch: int
    _steps: int

    def _advance(self, step: int) -> None:
        """Count a step as done; the epoch rolls over with its last one."""
        self._steps = step + 1
        if self._steps == self.steps_per_epoch:  # pyright: ignore[reportAttributeAccessIssue]
            self._epoch, self._steps = self._epoch + 1, 0

    @abstractmethod
    def _order_of(self) -> dict[str, Any]:
        """What the order depends on."""

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, at the boundary of a step, and what its order depends on."""
        return {"epoch": self._epoch, "steps": self._steps} | self._order_of()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Errors: ValueError for another step size, seed or number of groups: the epoch would have other steps.
        """
        for name, value in self._order_of().items():
            if state_dict.get(name) != value:
                raise ValueError(
                    f"the checkpoint was written with {name}={state_dict.get(name)}, this run has {value}; "
                    "use the same, or start anew without the checkpoint"
                )
        self._epoch, self._steps = state_dict["epoch"], state_dict["steps"]


class TrainingLoader(Resumable, GroupLoader):
    """A GroupLoader that a checkpoint resumes."""

    def _order_of(self) -> dict[str, Any]:
        return {"pairs_per_step": self.pairs_per_step, "seed": self.seed, "pairs": len(self.store)}
