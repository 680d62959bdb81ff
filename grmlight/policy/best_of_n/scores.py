"""The score matrix: a file of rewards a reward model, a number an answer in the order of the pool.

`scores/DIGEST.f64` holds little-endian float64, NaN for an answer that the reward cannot score. The name is a digest of
the pool and of the reward, so a matrix is never read for another policy, other prompts or another model. Files grow
with their pool, and go on after a kill.

`scores/DIGEST.blocks` says which answers were scored: a line a block, the answers up to its end and the digest of the
pool up to there. What is scored beyond the last line that agrees with the pool is of other answers, and is cut off.

Notable decisions:

- A text that the policy gave several times to one prompt is scored once, so that equal answers tie exactly.
- If a reward refuses a group, its answers are scored one by one: one answer without text does not spoil the others.

Shape suffixes: N answers of a prompt, R rewards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm.auto import tqdm

from grmlight.data.texts import TextGroup
from grmlight.evaluation.group_scorer import GroupScorer
from grmlight.policy.best_of_n.pool import Block, Pool, PoolAnswer
from grmlight.policy.rewards import checked_scores
from grmlight.policy.rollouts import PromptText

ANSWERS_AT_ONCE = 4096
"""After at least so many answers, scores go to the disk."""

_BYTES = 8


@dataclasses.dataclass(frozen=True)
class PromptScores:
    """A prompt's row of the matrix.

    Attributes:
        prompt: its place.
        scores_NR: the rewards of its answers in the order in which they were drawn; NaN for what cannot be scored.
        empty: answers without text.
        cut: answers that did not end by themselves.
        distinct: different answers.
    """

    prompt: int
    scores_NR: np.ndarray
    empty: int
    cut: int
    distinct: int

    @property
    def usable_N(self) -> np.ndarray:
        """Which answers every reward could score."""
        return np.asarray(np.isfinite(self.scores_NR).all(axis=1))


def score_file(folder: Path, pool: Pool, reward: str) -> Path:
    """Where the scores of a pool by a reward are.

    Args:
        folder: of all score files.
        pool: what is scored.
        reward: what tells this reward from any other.
    """
    digest = hashlib.sha256(json.dumps([pool.digest(), reward]).encode()).hexdigest()
    return folder / f"{digest[:32]}.f64"


def score_pool(path: Path, pool: Pool, prompts: Sequence[PromptText], opened: Callable[[], GroupScorer]) -> int:
    """Score what a file lacks, and return how many answers that were.

    Args:
        path: from `score_file`.
        pool: what is scored.
        prompts: its prompts.
        opened: gives the reward; not called if nothing is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ends = np.cumsum([block.answers for block in pool.blocks]).tolist()
    lines = [f"{end} {digest}\n" for end, digest in zip(ends, pool.digests, strict=True)]
    done = _scored_blocks(path, ends, lines)
    missing = sum(block.answers for block in pool.blocks[done:])
    with path.open("ab") as column, path.with_suffix(".blocks").open("ab") as notes:
        # What a killed run left of a block is scored again with it, and so is what was scored of another pool.
        column.truncate((ends[done - 1] if done else 0) * _BYTES)
        notes.truncate(sum(map(len, lines[:done])))
        if not missing:
            return 0
        scorer = opened()
        with tqdm(desc=f"scoring with {scorer.name}", total=missing, unit=" answers", delay=2) as bar:
            for blocks in _together(pool.blocks[done:]):
                found = _scored(blocks, pool, prompts, scorer)
                _write(column, found.astype("<f8").tobytes())
                # Behind the scores: a line promises that they are there.
                _write(notes, "".join(lines[done : done + len(blocks)]).encode())
                done += len(blocks)
                bar.update(len(found))
    return missing


def _scored_blocks(path: Path, ends: Sequence[int], lines: Sequence[str]) -> int:
    """How many of a pool's blocks a file has the scores of: those up to the first that its notes do not agree on."""
    notes = path.with_suffix(".blocks")
    if not path.exists() or not notes.exists():
        return 0
    whole = path.stat().st_size // _BYTES
    with notes.open(encoding="ascii", errors="replace", newline="\n") as file:
        pairs = zip(file, lines, ends, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda each: each[0] == each[1] and each[2] <= whole, pairs))


def _write(file: BinaryIO, content: bytes) -> None:
    """And wait until the disk has it."""
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def read_matrix(files: Sequence[Path], pool: Pool, samples: int) -> Iterator[PromptScores]:
    """The matrix, prompt by prompt; prompts that cannot be sampled from have no row.

    Args:
        files: for each reward its score file, whole.
        pool: the answers.
        samples: how many answers of each prompt count, the first ones.
    """
    columns = [np.memmap(path, dtype="<f8", mode="r") for path in files]
    places = _places(pool)
    for prompt in range(pool.prompts):
        if prompt not in places:
            continue
        place_N = np.concatenate(places[prompt])[:samples]
        answers = pool.answers(prompt, samples)
        first: dict[PoolAnswer, int] = {}
        source_N = np.array([first.setdefault(_as_text(each), number) for number, each in enumerate(answers)])
        scores_NR = np.empty((len(answers), len(columns)))
        for number, column in enumerate(columns):
            scores_NR[:, number] = column[place_N[source_N]]
        empty, cut = (
            sum(found) for found in ((not each.text.strip() for each in answers), (not each.ended for each in answers))
        )
        yield PromptScores(prompt, scores_NR, empty, cut, len(first))


def _as_text(answer: PoolAnswer) -> PoolAnswer:
    """What a reward sees of it: the same text may be of several tokenizations."""
    return answer._replace(tokens=0)


def _places(pool: Pool) -> dict[int, list[np.ndarray]]:
    """Where in a score file the answers to each prompt are."""
    found: dict[int, list[np.ndarray]] = {}
    begin = 0
    for block in pool.blocks:
        for prompt in block.prompts:
            found.setdefault(prompt, []).append(np.arange(begin, begin + block.count))
            begin += block.count
    return found


def _together(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    held: list[Block] = []
    for block in blocks:
        held.append(block)
        if sum(each.answers for each in held) >= ANSWERS_AT_ONCE:
            yield held
            held = []
    if held:
        yield held


def _scored(blocks: list[Block], pool: Pool, prompts: Sequence[PromptText], scorer: GroupScorer) -> np.ndarray:
    """The scores of some blocks in the order of the file; each prompt is one group, whatever its blocks."""
    distinct: dict[int, dict[PoolAnswer, int]] = {}
    wanted = []
    for block in blocks:
        for prompt, answers in zip(block.prompts, pool.block_answers(block), strict=True):
            known = distinct.setdefault(prompt, {})
            wanted += [(prompt, known.setdefault(_as_text(each), len(known))) for each in answers]
    groups = [
        TextGroup(prompts[prompt], tuple(each.text for each in known), ended=tuple(each.ended for each in known))
        for prompt, known in distinct.items()
    ]
    scores = dict(zip(distinct, score_groups(scorer, groups), strict=True))
    return np.array([scores[prompt][number] for prompt, number in wanted], dtype=np.float64)


def score_groups(scorer: GroupScorer, groups: Sequence[TextGroup]) -> list[list[float]]:
    """The rewards of each group; the answers of a group that is refused are tried one by one.

    Errors: ValueError for a reward that fails, or does not give a number an answer.
    """
    found = checked_scores(scorer, groups)
    spoiled = [place for place, row in enumerate(found) if len(row) > 1 and all(math.isnan(each) for each in row)]
    singles = [each for place in spoiled for each in _singles(groups[place])]
    rest = iter(checked_scores(scorer, singles) if singles else [])
    for place in spoiled:
        found[place] = [next(rest)[0] for _ in groups[place].responses]
    return found


def _singles(group: TextGroup) -> Iterator[TextGroup]:
    for place, response in enumerate(group.responses):
        yield dataclasses.replace(group, responses=(response,), ended=group.ended[place : place + 1])
