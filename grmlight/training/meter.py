"""Meter: training figures, summed on the device until a line is logged.

Notable decisions:

- A pack's values are put aside as they are and added to one float64 vector every few packs, so that a pack costs a
  handful of small operations and nothing waits for the device.
- Reading is one collective and one transfer: every rank's vector, with what the host has counted, goes to all.
- The first pack whose terms are not finite is found on the device too; its rows lie in a ring buffer on the host.
- A state keeps each rank's sums apart, so that a resumed run logs the same bits as one that was never stopped.

Shape suffixes: P packs, K terms.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from grmlight.data.batch import GroupBatch, sum_dtype
from grmlight.evaluation.pair_figures import NO_TERMS, SUMS, PairValues, pair_figures, pair_sums
from grmlight.training.speed import Clock, Work, peak_memory, together

ASIDE = 32
"""Packs put aside before they are added to the sums."""
KEPT = 4096
"""Packs whose rows are remembered."""

_REWARDS, _NORM = "rewards", "gradient_norm"
RESERVED = NO_TERMS | {"loss", "preference"}
"""Names under `train/` that no regularizer may have."""


def _alone(vector: Tensor) -> Tensor:
    return vector[None]


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The ranks that measure together.

    Attributes:
        rank: this one.
        count: their number.
        gather: from each rank's vector the matrix of all, in the order of ranks.
    """

    rank: int = 0
    count: int = 1
    gather: Callable[[Tensor], Tensor] = _alone


@dataclasses.dataclass(frozen=True)
class Reading:
    """What all ranks have measured since the last flush.

    Attributes:
        figures: by name; terms are means a step.
        work: of all ranks together.
    """

    figures: dict[str, float]
    work: Work


class Meter:
    """Adds up the figures of a run.

    Attributes:
        since: the step of the last flush.
        skipped: steps left out since the run began.
        seconds: time spent training since the run began, of the slowest rank, up to the last flush.
        work: of this rank since the last flush.
        clock: runs while there is training.
    """

    def __init__(self) -> None:
        self.since = self.skipped = 0
        self.seconds = 0.0
        self.clock = Clock()
        self._names: tuple[str, ...] = ()
        self._sums = self._first = torch.zeros(0)
        self._clear()

    def add(
        self, batch: GroupBatch, step: int, terms: Mapping[str, Tensor], values: PairValues, attention: bool = False
    ) -> None:
        """Put a pack aside.

        Args:
            batch: the pack; of its tensors only the rows are kept.
            step: steps done before this one.
            terms: each the pack's share of the step's mean, by name.
            values: what the figures of pairs need.
            attention: whether FLOPs are wanted.
        """
        if (names := (*terms, _REWARDS, _NORM)) != self._names:
            self._begin(names, values.rewards_N.device)
        if not self._packs:
            self._start, self._packs_a_step = step, batch.packs
        self.work.add(batch, attention)
        # A copy: the batch's own may be a view of all that came to the device with it.
        self._rows[self._packs] = batch.row_C.clone()
        self._rows.pop(self._packs - KEPT, None)
        self._packs += 1
        self._aside.append(((*terms.values(), values.rewards_N.sum()), values))

    def end_step(self, norm: Tensor | None) -> None:
        """The packs of a step are complete, and the norm of its gradient is known, where someone wanted it."""
        self._steps += 1
        if norm is not None:
            self._norms.append(norm)
        if len(self._aside) >= ASIDE:
            self._fold()

    def step_is_finite(self, norm: Tensor) -> Tensor:
        """Whether the terms of this step's packs, and the norm of their gradient, are finite; stays on the device."""
        terms = [term for terms, _ in self._aside[-self._packs_a_step :] for term in terms]
        return torch.stack([*terms, norm]).isfinite().all()

    def drop_step(self, norm: Tensor, ranks: Ranks) -> str:
        """Leave this step out of all figures but those of its work; says what was not finite, and in which rows."""
        packs, self._aside = self._aside[-self._packs_a_step :], self._aside[: -self._packs_a_step]
        self.skipped += 1
        first = self._first_bad([terms for terms, _ in packs], [norm])
        return self._describe(ranks.gather(first).tolist(), ranks)

    def flush(self, step: int, ranks: Ranks) -> Reading:
        """The figures of all ranks since the last flush; begins anew.

        Errors: ValueError that names the first step with terms that are not finite, the terms, and its rows.
        """
        found = self._read(ranks)
        sums = [sum(values) for values in zip(*(sums for sums, _ in found), strict=True)]
        figures = {}
        if self._steps and sums:
            figures = {name: total / self._steps for name, total in zip(self._names, sums, strict=False)}
            del figures[_REWARDS], figures[_NORM]
            if self._normed:
                figures[_NORM] = sums[len(self._names) - 1] / ranks.count / self._normed
            figures |= pair_figures(sums[len(self._names) :])
        self._clear()
        self.since, work = step, together([work for _, work in found])
        self.seconds += work.seconds
        return Reading(figures, work)

    def state(self, ranks: Ranks) -> dict[str, Any]:
        """What a checkpoint keeps, the same on every rank.

        Errors: ValueError as `flush`.
        """
        found = [{"sums": sums, "work": list(dataclasses.astuple(work))} for sums, work in self._read(ranks)]
        counts = {"since": self.since, "skipped": self.skipped, "steps": self._steps, "normed": self._normed}
        counts |= {"seconds": self.seconds}
        return counts | {"names": list(self._names), "ranks": found}

    def load(self, state: dict[str, Any], ranks: Ranks, device: torch.device) -> None:
        """Go on from a state; on another number of ranks the first one takes all of it."""
        self._clear()
        self.since, self.skipped, self.seconds = state["since"], state["skipped"], state["seconds"]
        self._begin(tuple(state["names"]), device)
        self._steps, self._normed = state["steps"], state["normed"]
        found = [(each["sums"], Work(*each["work"])) for each in state["ranks"]]
        if len(found) == ranks.count:
            sums, self.work = found[ranks.rank]
        elif ranks.rank == 0:
            sums = [sum(values) for values in zip(*(sums for sums, _ in found), strict=True)]
            self.work = together([work for _, work in found])
        else:
            return
        if sums:
            self._sums = torch.tensor(sums, dtype=self._sums.dtype, device=device)

    def pause(self) -> None:
        """Count the time until now, and none from now on."""
        self.work.seconds += self.clock.stop()

    def _clear(self) -> None:
        self.work = Work()
        self._packs = self._steps = self._normed = self._start = 0
        self._packs_a_step = 1
        self._rows: dict[int, Tensor] = {}
        self._aside: list[tuple[tuple[Tensor, ...], PairValues]] = []
        self._norms: list[Tensor] = []
        self._sums = torch.zeros_like(self._sums)
        self._first = torch.full_like(self._first, math.inf)

    def _begin(self, names: tuple[str, ...], device: torch.device) -> None:
        """Sums of other terms than until now."""
        self._names = names
        self._steps = self._normed = 0
        self._sums = torch.zeros(len(names) + SUMS if names else 0, dtype=sum_dtype(device), device=device)
        self._first = torch.full_like(self._sums[: len(names)], math.inf)

    def _fold(self) -> None:
        """Add what was put aside to the sums."""
        if not self._aside:
            return
        terms = [terms for terms, _ in self._aside]
        self._first = torch.minimum(self._first, self._first_bad(terms, self._norms))
        dtype = self._sums.dtype
        norms = torch.stack(self._norms).to(dtype).sum()[None] if self._norms else self._sums.new_zeros(1)
        self._sums += torch.cat([_matrix(terms, dtype).sum(0), norms, pair_sums([values for _, values in self._aside])])
        self._normed += len(self._norms)
        self._aside, self._norms = [], []

    def _first_bad(self, terms: list[tuple[Tensor, ...]], norms: list[Tensor]) -> Float[Tensor, " K"]:
        """For each term the first of the last packs in which it is not finite; infinity if there is none."""
        dtype, every = self._sums.dtype, self._packs_a_step
        first_K = _first_row(_matrix(terms, dtype), self._packs - len(terms), 1)
        if not norms:
            return torch.cat([first_K, torch.full_like(first_K[:1], math.inf)])
        norms_S1 = torch.stack(norms).to(dtype)[:, None]
        return torch.cat([first_K, _first_row(norms_S1, self._packs - 1 - every * (len(norms) - 1), every)])

    def _read(self, ranks: Ranks) -> list[tuple[list[float], Work]]:
        """Sums and work of each rank: one collective, one transfer."""
        running, device = self.clock.running, self._sums.device
        if not running:
            self.clock.start()
        self._fold()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.pause()
        if running:
            self.clock.start()
        self.work.memory = peak_memory(device)
        host = torch.tensor(dataclasses.astuple(self.work), dtype=sum_dtype(device), device=device)
        found = ranks.gather(torch.cat([self._sums, self._first, host])).tolist()
        end = len(self._sums)
        firsts = [row[end : end + len(self._first)] for row in found]
        if any(map(math.isfinite, (slot for row in firsts for slot in row))):
            raise ValueError(
                f"{self._describe(firsts, ranks)}; lower the learning rate or look at these rows, and go on from the "
                "last checkpoint, which is finite"
            )
        return [(row[:end], Work(*row[end + len(self._first) :])) for row in found]

    def _describe(self, firsts: list[list[float]], ranks: Ranks) -> str:
        """The first step that was bad: its terms and its rows. Call it on every rank.

        Args:
            firsts: for each rank, `_first_bad`.
            ranks: all of them.
        """
        every = self._packs_a_step
        step = min(slot for row in firsts for slot in row) // every
        bad = [[slot // every == step for slot in row] for row in firsts]
        names = [name for place, name in enumerate(self._names) if any(row[place] for row in bad)]
        mine = zip(firsts[ranks.rank][:-1], bad[ranks.rank][:-1], strict=True)
        slots = {int(slot) for slot, here in mine if here}
        if names == [_NORM]:
            # A gradient that is not finite is known of the whole step alone.
            slots = set(range(int(step) * every, int(step + 1) * every))
        kept = [self._rows[slot].tolist() for slot in slots if slot in self._rows]
        rows = _gather_rows([row for each in kept for row in each], ranks, self._sums)
        where = f"rows {_some(rows)}" if rows else "its rows are no longer known: log more often"
        return f"step {self._start + int(step) + 1}: these terms are not finite: {', '.join(names)} ({where})"


def _matrix(terms: list[tuple[Tensor, ...]], dtype: torch.dtype) -> Float[Tensor, "P K"]:
    return torch.stack([term for pack in terms for term in pack]).to(dtype).view(len(terms), -1)


def _first_row(values: Float[Tensor, "P K"], start: int, every: int) -> Float[Tensor, " K"]:
    """For each column the number of the first row that is not finite, where row p has the number start + p every."""
    numbers_P = torch.arange(len(values), dtype=values.dtype, device=values.device) * every + start
    return torch.where(values.isfinite(), math.inf, numbers_P[:, None]).amin(0)


def _gather_rows(rows: list[int], ranks: Ranks, like: Tensor) -> list[int]:
    """The row ids of all ranks, in order."""
    longest = int(ranks.gather(like.new_tensor([len(rows)])).max())
    if not longest:
        return []
    padded = like.new_tensor(rows + [-1] * (longest - len(rows)))
    return sorted({int(row) for row in ranks.gather(padded).flatten().tolist() if row >= 0})


def _some(rows: list[int], shown: int = 20) -> str:
    rest = f" and {len(rows) - shown} more" if len(rows) > shown else ""
    return ", ".join(map(str, rows[:shown])) + rest
