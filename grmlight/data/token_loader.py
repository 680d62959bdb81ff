"""TokenLoader: steps of packs that are filled up to a number of tokens.

Notable decisions:

- Bins are filled best fit decreasing within windows of the shuffled order, shuffled, and filled anew each epoch. They
  are a pure function of (store, seed, epoch, tokens_per_pack, window). An epoch has each group once.
- A step is the next ranks x packs bins, one for each pack; the last step of an epoch may have empty shares. Steps hold
  different numbers of groups, and every group of a step weighs the same, since the batch carries their number.
- Epochs may differ by a few bins, and so by a step. Whoever counts the steps asks again in each epoch.
- Ranks x packs decide how many bins a step takes. Within an epoch they stay; at its end they may change.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from grmlight._data_rs import Store, pack_bins
from grmlight.data.loader import Deal, Dealt, PackLoader, Resumable

WINDOW = 4000
"""Groups that are packed together: nearly as full as all at once, and far from sorted by length."""


class TokenLoader(Resumable, PackLoader):
    """A PackLoader whose packs hold as many groups as fit, and that a checkpoint resumes.

    Args:
        store: the prepared data.
        tokens_per_pack: tokens of a pack, at most.
        window: groups packed together; `WINDOW` without it.
        options: see `PackLoader`.

    Errors: ValueError for a group that does not fit, by its row.
    """

    def __init__(self, store: Store, tokens_per_pack: int, window: int | None = None, **options: Any) -> None:
        super().__init__(store, **options)
        check_fit(store, tokens_per_pack)
        self.tokens_per_pack, self.window = tokens_per_pack, window or WINDOW
        self._bins = functools.lru_cache(maxsize=1)(self._bins_of)

    @property
    def bins_per_step(self) -> int:
        """Bins of one step, over all ranks and packs."""
        return self.ranks * self.packs

    @property
    def steps_per_epoch(self) -> int:
        """Steps of this epoch; another one may have one more or less."""
        _, bounds = self._bins(self._epoch)
        return -(-(len(bounds) - 1) // self.bins_per_step)

    @property
    def begun(self) -> bool:
        """Whether a step is done."""
        return self._epoch + self._steps > 0

    @property
    def fill(self) -> float:
        """Share of the packs' token slots that this epoch fills."""
        _, bounds = self._bins(self._epoch)
        return float(self.costs.sum() / ((len(bounds) - 1) * self.tokens_per_pack))

    def deals(self) -> Iterator[Deal]:
        """What the packs hold, in the order of the iteration, without packing anything."""
        groups, bounds = self._bins(self._epoch)
        for step in range(self._steps, self.steps_per_epoch):
            yield from self._own(
                self._share(groups, bounds[step * self.bins_per_step :][: self.bins_per_step + 1]), step
            )

    def _dealt(self) -> Dealt:
        groups, bounds = self._bins(self._epoch)
        every = self.bins_per_step
        steps = [self._share(groups, bounds[first:][: every + 1]) for first in range(0, len(bounds) - 1, every)]
        ends = np.cumsum([0, *(len(step.groups) for step in steps)])
        inner = [step.bounds[1:] + end for step, end in zip(steps, ends, strict=False)]
        return Dealt(
            np.concatenate([step.groups for step in steps]),
            np.concatenate([step.counts for step in steps]),
            np.concatenate([[0], *inner]),
        )

    def _share(self, groups: np.ndarray, bounds: np.ndarray) -> Dealt:
        """One step: a bin for each pack, and the cheapest group in those for which there is none."""
        own = groups[bounds[0] : bounds[-1]]
        empty = self.bins_per_step + 1 - len(bounds)
        cheapest = np.full(empty, own[np.argmin(self.costs[own])])
        counts = np.concatenate([np.ones(len(own), np.float32), np.zeros(empty, np.float32)])
        ends = np.concatenate([bounds - bounds[0], len(own) + 1 + np.arange(empty)])
        return Dealt(np.concatenate([own, cheapest]), counts, ends)

    def _bins_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The groups of an epoch, bin after bin, and where each bin begins."""
        order = self._order(epoch)
        positions, bounds = pack_bins(self.costs[order], self.tokens_per_pack, self.window, self.seed or 0, epoch)
        return order[positions], bounds

    def _order_of(self) -> dict[str, Any]:
        data = {"seed": self.seed, "pairs": len(self.store)}
        return {"tokens_per_pack": self.tokens_per_pack, "window": self.window} | data

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, at the boundary of a step; `bins` are those of the epoch that are done."""
        return super().state_dict() | {"bins": self._steps * self.bins_per_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, on any number of ranks and packs that takes the same number of bins a step.

        Errors: ValueError as `Resumable`, and for another number of bins a step within an epoch.
        """
        super().load_state_dict(state_dict)
        if state_dict["bins"] != self._steps * self.bins_per_step:
            before = state_dict["bins"] // self._steps
            raise ValueError(
                f"the checkpoint lies within an epoch of {before} packs a step over all devices, this run has "
                f"{self.bins_per_step}; set trainer.accumulate_grad_batches so that devices x accumulation is "
                f"{before}, or go on from the end of an epoch"
            )


def check_fit(store: Store, tokens_per_pack: int, name: str = "the training pairs") -> None:
    """Errors: ValueError if a group has more tokens than a pack, by its row, or a pack is to have none."""
    if tokens_per_pack < 1:
        raise ValueError(f"tokens_per_pack must be at least 1, got {tokens_per_pack}")
    costs = store.costs
    if len(long := np.flatnonzero(costs > tokens_per_pack)):
        row = store.rows()[int(long[0])]["row"]
        raise ValueError(
            f"{name}: row {row} has {costs[long[0]]} tokens, more than tokens_per_pack {tokens_per_pack}; set "
            f"tokens_per_pack to {costs.max()} or more, or lower prepare.max_length (a pair has at most twice that)"
        )
