"""The pool: a file of sampled answers that only grows.

`pool.jsonl` begins with a line that says what it is of (policy, prompts, seed, sampling) and a line of the prompts that
cannot be sampled from. Each further line is a block: some prompts, and for each as many further answers, as
`[text, tokens, ended]`.

Notable decisions:

- Blocks are in the order of their answers: one that is there twice or not at all is found when the pool is opened.
- A block is written at once and synchronized, so a killed run loses the block that it was sampling, and no other. What
  it left of a line is cut off.
- A block's answers depend on the seed, the prompt and the place of its first answer alone. So a continued run gives the
  same file, and a pool that has too few answers is added to.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grmlight.data.files import write_whole


class PoolAnswer(NamedTuple):
    """A sampled answer.

    Attributes:
        text: without special tokens; empty where the policy said nothing.
        tokens: how many it is long, its end included.
        ended: whether it ended by itself, rather than being cut off at the length limit.
    """

    text: str
    tokens: int
    ended: bool


@dataclasses.dataclass(frozen=True)
class Block:
    """What one line holds.

    Attributes:
        prompts: their places in the list of prompts.
        first: the place of the first of these answers among those to its prompt.
        count: answers to each of these prompts.
        offset: where the line begins in the file, bytes.
    """

    prompts: tuple[int, ...]
    first: int
    count: int
    offset: int

    @property
    def answers(self) -> int:
        """Answers in all."""
        return len(self.prompts) * self.count


class Pool:
    """A pool on disk, opened or begun.

    Args:
        path: its file.
        identity: what it is of, as plain values.
        prompts: number of prompts.

    Attributes:
        refused: prompts that cannot be sampled from, by their place, and why; None as long as nobody has looked.
        blocks: in the order of the file.
        digests: for each block that of the file up to its end; what was computed from the pool is told by it from what
            another pool would give.
        cut_off: bytes of an incomplete last line that were removed.

    Errors: ValueError for a pool of something else, for a line that is none, and for blocks that are not in order.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], prompts: int) -> None:
        self.path, self.prompts = path, prompts
        self.refused: dict[int, str] | None = None
        self.blocks: list[Block] = []
        self.digests: list[str] = []
        self.cut_off = 0
        self._blocks_of: dict[int, list[Block]] = {}
        self._counts_P = np.zeros(prompts, dtype=np.int64)
        self._held: tuple[int, list[list[PoolAnswer]]] | None = None
        self._running = hashlib.sha256()
        if not path.exists() or path.stat().st_size == 0:
            write_whole(path, json.dumps(identity) + "\n")
        self._read(dict(identity))

    def counts(self) -> np.ndarray:
        """Answers to each prompt."""
        return self._counts_P.copy()

    def digest(self) -> str:
        """Tells this pool from others, and stays as it grows: of its identity and its first block."""
        return self.digests[0] if self.digests else self._running.hexdigest()

    def refuse(self, refused: Mapping[int, str]) -> None:
        """Note the prompts that cannot be sampled from, once and before the first block."""
        assert self.refused is None
        assert not self.blocks
        self._running.update(self._append({"refused": {str(place): reason for place, reason in refused.items()}}))
        self.refused = dict(refused)

    def append(self, prompts: Sequence[int], first: int, answers: Sequence[Sequence[PoolAnswer]], sampler: str) -> None:
        """Write further answers to some prompts, equally many to each, and wait until the disk has them."""
        entry = {"prompts": list(prompts), "first": first, "sampler": sampler, "answers": answers}
        offset = self.path.stat().st_size
        self._enter(entry, offset, self._append(entry))

    def answers(self, prompt: int, most: int | None = None) -> list[PoolAnswer]:
        """The first answers to a prompt, in the order in which they were drawn."""
        found = [
            answer
            for block in self._blocks_of.get(prompt, [])
            for answer in self.block_answers(block)[block.prompts.index(prompt)]
        ]
        return found[:most]

    def block_answers(self, block: Block) -> list[list[PoolAnswer]]:
        """The answers of a block, a list for each of its prompts."""
        if self._held is None or self._held[0] != block.offset:
            with self.path.open("rb") as file:
                file.seek(block.offset)
                rows = json.loads(file.readline())["answers"]
            self._held = block.offset, [[PoolAnswer(*each) for each in row] for row in rows]
        return self._held[1]

    def _append(self, entry: Mapping[str, Any]) -> bytes:
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        with self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return line

    def _read(self, identity: dict[str, Any]) -> None:
        with self.path.open("rb") as file:
            for number, (offset, line) in enumerate(_lines(file), 1):
                if not line.endswith(b"\n") and number > 1:
                    self.cut_off = len(line)
                    break
                try:
                    entry = json.loads(line)
                    self._take(entry, identity, number, offset, line)
                except (LookupError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
                    raise ValueError(f"{self.path}: line {number} is no line of a pool; remove the file") from error
                except _OutOfOrderError as error:
                    raise ValueError(
                        f"{self.path}: line {number} {error}; remove it and all lines behind it, they are sampled again"
                    ) from error
        if self.cut_off:
            os.truncate(self.path, self.path.stat().st_size - self.cut_off)

    def _take(self, entry: dict[str, Any], identity: dict[str, Any], number: int, offset: int, line: bytes) -> None:
        if number == 1:
            self._check(entry, identity)
            self._running.update(line)
        elif "refused" in entry:
            if self.refused is not None:
                raise _OutOfOrderError("says again which prompts are refused")
            self.refused = {int(place): str(reason) for place, reason in entry["refused"].items()}
            self._running.update(line)
        else:
            self._enter(entry, offset, line)

    def _check(self, found: dict[str, Any], identity: dict[str, Any]) -> None:
        if found == identity:
            return
        names = [name for name in identity | found if found.get(name) != identity.get(name)]
        raise ValueError(
            f"{self.path}: was sampled with another {', '.join(names)}; name another folder with --out, or remove it"
        )

    def _enter(self, entry: Mapping[str, Any], offset: int, line: bytes) -> None:
        block = Block(tuple(entry["prompts"]), entry["first"], len(entry["answers"][0]), offset)
        self._check_order(block, [len(row) for row in entry["answers"]])
        self._running.update(line)
        self.digests.append(self._running.hexdigest())
        self._counts_P[list(block.prompts)] += block.count
        self.blocks.append(block)
        for prompt in block.prompts:
            self._blocks_of.setdefault(prompt, []).append(block)

    def _check_order(self, block: Block, counts: Sequence[int]) -> None:
        if self.refused is None:
            raise _OutOfOrderError("has answers before the line of the prompts that are refused")
        if counts != [block.count] * len(block.prompts) or len(set(block.prompts)) < len(block.prompts):
            raise _OutOfOrderError("has not equally many answers to each of its prompts")
        for prompt in block.prompts:
            if not 0 <= prompt < self.prompts or prompt in self.refused:
                raise _OutOfOrderError(f"answers prompt {prompt + 1}, which is none of the {self.prompts} or refused")
            if block.first != (there := int(self._counts_P[prompt])):
                raise _OutOfOrderError(
                    f"begins at answer {block.first + 1} to prompt {prompt + 1}, of which {there} are there before it"
                )


class _OutOfOrderError(Exception):
    """What is wrong with a line, given the lines before it."""


def _lines(file: Any) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while line := file.readline():
        yield offset, line
        offset += len(line)
