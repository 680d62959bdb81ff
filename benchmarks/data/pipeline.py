"""Whole preparations, JSON lines to torch batches: ours against TRL, and against Python compositions.

A job of one pair is what a job costs before its pairs: loading the tokenizer, mostly. What is compared is the rest, as
the tokenizer is in memory in a run anyway; the whole of a job stands beside it. TRL takes a minute for 20,000 pairs, so
each of its rounds has the next block of the same file, and so has ours; ours also has the whole file in each round.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import median

from benchmarks.data import material
from benchmarks.data.engines import ENGINES, composition
from benchmarks.data.jobs import Done, Worker, same_ids, workers
from benchmarks.train.report import Row


@dataclasses.dataclass(frozen=True)
class Turn:
    """A worker's jobs in one round: of one pair, and of many."""

    one: Done
    many: Done
    pairs: int

    @property
    def per_pair(self) -> float:
        """Processor seconds for each further pair."""
        return (self.many.seconds - self.one.seconds) / (self.pairs - 1)

    def whole(self, pairs: int) -> float:
        """Processor seconds of a job of so many pairs."""
        return self.one.seconds + (pairs - 1) * self.per_pair


def pipeline_rows(folder: Path, pairs: int = 20_000, block: int = 2_000, rounds: int = 3) -> list[Row]:
    """Against TRL; ids are asserted equal on each block."""
    tokenizer, source = material.tokenizer(), material.pairs(pairs)
    one = material.head(source, 1, folder / "one.jsonl")
    turns: list[tuple[Turn, Turn]] = []
    with workers(ours=Worker("ours_job"), trl=Worker("trl_job")) as both:
        for number in range(rounds):
            part = material.part(source, number * block % pairs, block, folder / f"{number}.jsonl")
            whole = Turn(both["ours"].run(one, tokenizer), both["ours"].run(source, tokenizer), pairs)
            first = both["trl"].run(one, tokenizer)
            peer = Turn(first, both["trl"].run(part, tokenizer, str(folder / "trl.npz")), block)
            assert same_ids(both["ours"].run(part, tokenizer, str(folder / "ours.npz")), peer.many)
            # What comes first in a process is slower.
            turns += [(whole, peer)] if number or rounds == 1 else []
    return [
        Row("JSONL to batches against TRL", median(p.per_pair / o.per_pair for o, p in turns), "x", 60, 80),
        Row(
            f"the same with loading the tokenizer, a job of {pairs:,} pairs",
            median(p.whole(pairs) / o.whole(pairs) for o, p in turns),
            "x",
        ),
        Row("JSONL to batches, ours", 1e6 * median(o.per_pair for o, _ in turns), "us a pair"),
        Row("JSONL to batches, TRL", 1e6 * median(p.per_pair for _, p in turns), "us a pair"),
    ]


def composition_rows(
    folder: Path, engines: tuple[str, ...] = tuple(ENGINES), pairs: int = 20_000, rounds: int = 5
) -> list[Row]:
    """Against the composition on each engine, of which the first is ours; ids are asserted equal on the whole file."""
    tokenizer, source = material.tokenizer(), material.pairs(pairs)
    one = material.head(source, 1, folder / "one.jsonl")
    made = {name: worker for name in engines if (worker := composition(name))}
    turns: dict[str, list[Turn]] = {name: [] for name in ("ours", *made)}
    with workers(ours=Worker("ours_job"), **made) as all_workers:
        done = {
            name: worker.run(source, tokenizer, str(folder / f"{number}.npz"))
            for number, (name, worker) in enumerate(all_workers.items())
        }
        assert all(same_ids(done["ours"], other) for other in done.values())
        for _ in range(rounds):
            for name, worker in all_workers.items():
                turns[name].append(Turn(worker.run(one, tokenizer), worker.run(source, tokenizer), pairs))
    rows = []
    for name in made:
        ratio = median(p.per_pair / o.per_pair for o, p in zip(turns["ours"], turns[name], strict=True))
        bounds = (1.25, 1.5) if name == engines[0] else (None, None)
        rows.append(Row(f"JSONL to batches against a Python composition on {name}", ratio, "x", *bounds))
        rows.append(Row(f"the composition on {name}", 1e6 * median(turn.per_pair for turn in turns[name]), "us a pair"))
    return rows
