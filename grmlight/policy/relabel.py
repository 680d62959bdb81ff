"""Pairs labeled anew by a reward, with noise: the papers' step from a policy's answers to what a proxy is trained on.

Notable decisions:

- Noise belongs to the data: whether a row is flipped is drawn from (seed, row) alone and kept with the row, so every
  model that is trained on the file sees the same flips (Coste et al. 2024, arXiv 2310.02743, section 4).
- `margin` stays the absolute gap of the rewards, also where the label is flipped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from grmlight._data_rs import Pairs, read_pairs
from grmlight.data.files import write_json, write_whole
from grmlight.data.source import pair_source, read_column
from grmlight.data.texts import TextGroup
from grmlight.evaluation.group_scorer import GroupScorer
from grmlight.policy.best_of_n.scores import score_groups

_AT_ONCE = 2048
_KEPT = ("id", "source", "category")
_ENDED = ("chosen_ended", "rejected_ended")
"""Whether each answer ended by itself, as `grmlight bon` writes it."""


@dataclasses.dataclass(frozen=True)
class Relabeled:
    """What became of every row: `rows` is `used` and all the others together, but `turned` and `flipped`.

    Attributes:
        rows: of the input.
        used: written.
        ties: row numbers whose two answers have one reward.
        not_scored: row numbers with an answer that the reward could not score.
        refused: reason to row numbers of rows that are no pairs.
        turned: how many labels the reward turned around, before noise.
        flipped: how many the noise did.
    """

    rows: int
    used: int
    ties: list[int]
    not_scored: list[int]
    refused: dict[str, list[int]]
    turned: int
    flipped: int

    def describe(self) -> str:
        """In lines: what was used, and why other rows were not."""
        others = {"ties": self.ties, "not scored": self.not_scored} | self.refused
        lines = [f"{self.rows} rows: {self.used} used, {self.turned} of them turned around, {self.flipped} flipped"]
        return "\n".join(
            lines + [f"  {name}: {len(rows)}, row {rows[0]} first" for name, rows in others.items() if rows]
        )


def relabel(source: str, out: Path, reward: GroupScorer, noise: float = 0.0, seed: int = 0) -> Relabeled:
    """Write the pairs with the answer of the higher reward as `chosen`; some flipped.

    Each row has `prompt`, `chosen`, `rejected`, `margin`, the rewards `gold_chosen` and `gold_rejected`, `flipped`, and
    of the input `id`, `source` and `category`. Where the input says with `chosen_ended` and `rejected_ended` whether
    its answers ended by themselves, the reward is told, and the output says so too. `OUT.report.json` accounts for
    every row of the input.

    Args:
        source: pairs, in any form that `grmlight prepare` takes; their labels are not looked at.
        out: the JSON lines to write.
        reward: what labels.
        noise: share of labels to flip.
        seed: of the flips.

    Errors: ValueError in one line for what cannot be found or read, and if no row is left.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise is a share between 0 and 1, got {noise}")
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"{out}: cannot be written; name a file in a folder that exists")
    if out.exists() and Path(source).exists() and Path(source).resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"{out}: is the source, or lies in it; name another file with --out")
    pairs = read_pairs(pair_source(source), {"name": source, "on_tie": "keep"})
    ended = [read_column(source, name, bool) for name in _ENDED]
    groups = [_group(pairs, place, ended) for place in range(len(pairs))]
    rankings = [pairs.row(place) for place, group in enumerate(groups) if len(group.responses) != 2]
    kept = [place for place, group in enumerate(groups) if len(group.responses) == 2]
    columns = {name: read_column(source, name) for name in _KEPT}
    ties, not_scored, rows, turned = [], [], [], 0
    for place, (first, second) in zip(kept, _scores(reward, [groups[place] for place in kept]), strict=True):
        number = pairs.row(place)
        if not math.isfinite(first - second):
            not_scored.append(number)
        elif first == second:
            ties.append(number)
        else:
            turned += second > first
            others = {name: column[number] for name, column in columns.items() if number in column}
            rows.append(others | _row(groups[place], (first, second), flips(noise, seed, number)))
    refused = dict(pairs.refused) | ({"ranking": rankings} if rankings else {})
    flipped = sum(row["flipped"] for row in rows)
    found = Relabeled(pairs.rows, len(rows), ties, not_scored, refused, turned, flipped)
    if not rows:
        raise ValueError(f"{source}: no row is left. {' '.join(found.describe().split())}")
    write_whole(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    settings = {"source": source, "reward": reward.name, "noise": noise, "seed": seed}
    write_json(out.with_name(f"{out.name}.report.json"), settings | dataclasses.asdict(found))
    return found


def flips(noise: float, seed: int, row: int) -> bool:
    """Whether the label of a row is flipped: a draw from (seed, row) alone."""
    digest = hashlib.sha256(f"relabel {seed} {row}".encode()).digest()
    return int.from_bytes(digest[:7], "big") < noise * 2**56


def _group(pairs: Pairs, place: int, ended: Sequence[Mapping[int, bool]]) -> TextGroup:
    prompt, responses = pairs.group(place)
    row = pairs.row(place)
    told = len(responses) == len(ended) and any(row in column for column in ended)
    return TextGroup(
        prompt if isinstance(prompt, str) else tuple(prompt),
        tuple(each if isinstance(each, str) else tuple(each) for each in responses),
        ended=tuple(column.get(row, True) for column in ended) if told else (),
    )


def _scores(reward: GroupScorer, groups: list[TextGroup]) -> Iterator[list[float]]:
    with tqdm(desc=f"scoring with {reward.name}", total=len(groups), unit=" pairs", delay=2) as bar:
        for start in range(0, len(groups), _AT_ONCE):
            part = groups[start : start + _AT_ONCE]
            yield from score_groups(reward, part)
            bar.update(len(part))


def _row(group: TextGroup, rewards: tuple[float, float], flipped: bool) -> dict[str, Any]:
    better = (rewards[1] > rewards[0]) != flipped
    chosen, rejected = int(better), 1 - int(better)
    ended = dict(zip(_ENDED, (group.ended[chosen], group.ended[rejected]), strict=True)) if group.ended else {}
    return ended | {
        "prompt": group.prompt,
        "chosen": group.responses[chosen],
        "rejected": group.responses[rejected],
        "margin": abs(rewards[0] - rewards[1]),
        "gold_chosen": rewards[chosen],
        "gold_rejected": rewards[rejected],
        "flipped": flipped,
    }
