"""Benchmarks on a scorer: every row scored once, on one process or shared by several."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from grmlight.data.texts import GroupError, TextGroup
from grmlight.evaluation.benchmarks import Benchmark, Example, Reading
from grmlight.evaluation.benchmarks.benchmark import why_nothing
from grmlight.evaluation.group_scorer import GroupScorer
from grmlight.evaluation.rows import Row as KeptRow
from grmlight.evaluation.rows import Rows, evaluation_rows_file, write_rows
from grmlight.evaluation.tally import Bootstrap, Row, Scored

_Verdicts = tuple[dict[str, str], dict[str, list[str]], dict[str, KeptRow]]
_FINDINGS = {"truncated": "prompt_truncated", "unseen": "unseen_category"}
"""What a scorer may have found, and its name in the report."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A benchmark's result.

    Attributes:
        rows: its lines.
        reading: what was read; rows that the scorer refused are among its refused ones now, and no examples.
        kept: what a paired comparison needs; without rows where the score is no sum over examples.
    """

    rows: list[Row]
    reading: Reading
    kept: Rows


def evaluate(
    scorer: GroupScorer, benchmark: Benchmark, reading: Reading, bootstrap: Bootstrap | None = None, rank: int = 0
) -> Result:
    """Score a benchmark's examples, and put its rows together.

    Where several ranks share the rows (`bootstrap.ranks`), all of them call this and get the same result.

    Errors: ValueError if no row could be scored, and for a row that the scorer will not leave out in silence.
    """
    bootstrap = bootstrap or Bootstrap()
    examples = reading.examples
    # Long ones first, so that the ranks' shares are alike.
    order = sorted(range(len(examples)), key=lambda number: -sum(examples[number].lengths))
    mine = [examples[number] for number in order[rank :: bootstrap.ranks]]
    groups = [dataclasses.replace(example.group, category=example.category) for example in mine]
    try:
        rewards = scorer.score(groups)
    except GroupError as error:
        raise error.of([example.row for example in mine], f"{benchmark.name}: {reading.source}") from error
    reasons: dict[int, str] = getattr(scorer, "refused", {})
    refused = {
        example.row: reasons.get(place, "reward_not_finite")
        for place, (example, found) in enumerate(zip(mine, rewards, strict=True))
        if not all(map(math.isfinite, found))
    }
    noted = {name: [mine[place].row for place in getattr(scorer, found, [])] for found, name in _FINDINGS.items()}
    kept = [pair for pair in zip(mine, rewards, strict=True) if pair[0].row not in refused]
    found = {pair[0].row: row for pair in kept if (row := benchmark.kept(*pair))}
    refused, noted, found = _together(bootstrap.ranks, refused, noted, found)
    judged = _with_verdicts(reading, refused, noted)
    if not judged.examples:
        raise ValueError(f"{benchmark.name}: {reading.source}: {why_nothing(judged)}")
    rows = benchmark.rows(scored(examples, kept), bootstrap)
    assert rows[-1].n == sum(each.counts for each in judged.examples), "a row was lost or counted twice"
    return Result(rows, judged, _kept(benchmark, reading, found))


def keep_rows(results: Sequence[Result], directory: Path) -> None:
    """Write a run's `evaluation-rows-BENCHMARK.json`, of which `grmlight compare` makes paired differences."""
    for result in results:
        if result.kept.rows:
            write_rows(evaluation_rows_file(directory, result.rows[-1].benchmark), result.kept)


def _kept(benchmark: Benchmark, reading: Reading, found: dict[str, KeptRow]) -> Rows:
    """Rows in the order of the examples; the fingerprint is that of all examples, those that were refused included."""
    read = [(each.row, each.category, _content(each.group)) for each in reading.examples]
    fingerprint = hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()
    kept = [found[each.row] for each in reading.examples if each.row in found]
    return Rows(reading.source, fingerprint, benchmark.weighed(kept))


def _content(group: TextGroup) -> dict[str, Any]:
    return {"prompt": group.prompt, "responses": group.responses, "source": group.source}


def scored(examples: Sequence[Example], kept: Sequence[tuple[Example, Sequence[float]]]) -> Scored:
    """Rewards of some examples as tensors; categories and prompts are numbered by all of them."""
    categories = {name: number for number, name in enumerate(dict.fromkeys(each.category for each in examples))}
    prompts = {name: number for number, name in enumerate(dict.fromkeys(each.prompt for each in examples))}
    sizes = torch.tensor([len(found) for _, found in kept], dtype=torch.int64)

    def flat(values: list[list[float]], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([value for each in values for value in each], dtype=dtype)

    return Scored(
        categories=tuple(categories),
        prompts=len(prompts),
        rewards_N=flat([list(found) for _, found in kept], torch.float64),
        lengths_N=flat([[float(n) for n in each.lengths] for each, _ in kept], torch.float64),
        correct_N=flat([[place < each.correct for place in range(len(found))] for each, found in kept], torch.bool),
        level_N=flat([each.levels for each, _ in kept], torch.float64),
        group_N=torch.arange(len(kept)).repeat_interleave(sizes),
        category_G=torch.tensor([categories[each.category] for each, _ in kept], dtype=torch.int64),
        prompt_G=torch.tensor([prompts[each.prompt] for each, _ in kept], dtype=torch.int64),
        tied_G=torch.tensor([each.tied for each, _ in kept], dtype=torch.bool),
    )


def _together(ranks: int, refused: dict[str, str], noted: dict[str, list[str]], kept: dict[str, KeptRow]) -> _Verdicts:
    if ranks == 1:
        return refused, noted, kept
    gathered: list[_Verdicts] = [({}, {}, {})] * ranks
    torch.distributed.all_gather_object(gathered, (refused, noted, kept))
    return (
        {row: reason for each, _, _ in gathered for row, reason in each.items()},
        {finding: [row for _, each, _ in gathered for row in each[finding]] for finding in noted},
        {name: row for _, _, each in gathered for name, row in each.items()},
    )


def _with_verdicts(reading: Reading, refused: dict[str, str], noted: dict[str, list[str]]) -> Reading:
    """The reading with what the scorer found, rows in the order of the examples."""
    judged = dataclasses.replace(
        reading,
        examples=[example for example in reading.examples if example.row not in refused],
        refused={reason: list(rows) for reason, rows in reading.refused.items()},
        noted={finding: list(rows) for finding, rows in reading.noted.items()},
    )
    sets = {finding: set(rows) for finding, rows in noted.items()}
    for example in reading.examples:
        if example.row in refused:
            judged.refuse(refused[example.row], example.row)
            continue
        for finding, rows in sets.items():
            if example.row in rows:
                judged.note(finding, example.row)
    return judged
