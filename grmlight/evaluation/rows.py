"""What a model got right, row by row: the file that a paired comparison of two runs needs.

In a run directory `rows-SET.json` is that of a validation or test set, `evaluation-rows-BENCHMARK.json` that of a
benchmark, which may have a set's name. Each is one JSON object: `source`, `fingerprint` (of the source's content) and
`rows`, one a line, each with `row`, `prompt` (a key: rows of one prompt have the same), `right`, `pairs`, `category`,
`id` and `stratum`. `right` / `pairs` is the row's accuracy; a set's accuracy is the sum of `right` over the sum of
`pairs`, so both may be multiplied by a row's weight. The rows of a stratum weigh the same together, however many there
are.

Shape suffixes: R rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from grmlight._data_rs import Store
from grmlight.data.batch import GroupBatch
from grmlight.data.files import write_whole

_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of an evaluation set.

    Attributes:
        row: its number in the source, from 1, behind the name of its part where there are several.
        prompt: a key that rows of one prompt share; only its equality within a set means something.
        right: comparisons that the rewards order as labeled; an equal reward counts one half.
        pairs: comparisons with a labeled side.
        category: what the set calls this kind of row.
        id: the row's own name in the source.
        stratum: rows of which `pairs` is a share of one fixed weight; empty where it is a count of the row's own.
    """

    row: str
    prompt: str
    right: float
    pairs: float = 1.0
    category: str = ""
    id: str = ""
    stratum: str = ""

    def __post_init__(self) -> None:
        numbers = (self.right, self.pairs)
        if not all(isinstance(each, int | float) and math.isfinite(each) for each in numbers) or self.pairs <= 0:
            raise ValueError(f"row {self.row}: {self.right!r} of {self.pairs!r} pairs are right")


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one evaluation set, and which data they are of."""

    source: str
    fingerprint: str
    rows: list[Row]


def rows_file(folder: Path, name: str) -> Path:
    """Where a run keeps the rows of a validation or test set."""
    return folder / f"rows-{name}.json"


def evaluation_rows_file(folder: Path, name: str) -> Path:
    """Where a run keeps the rows of a benchmark."""
    return folder / f"evaluation-rows-{name}.json"


def write_rows(path: Path, rows: Rows) -> None:
    """Write the file, whole or not at all."""
    lines = ",\n".join(json.dumps(dataclasses.asdict(row), ensure_ascii=False) for row in rows.rows)
    head = json.dumps({"source": rows.source, "fingerprint": rows.fingerprint, "rows": []}, ensure_ascii=False)
    write_whole(path, f"{head.removesuffix(']}')}\n{lines}\n]}}\n")


def read_rows(path: Path) -> Rows:
    """Read what `write_rows` wrote.

    Errors: ValueError in one line that names the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Rows(found["source"], found["fingerprint"], [Row(**row) for row in found["rows"]])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no file of rows ({error}); evaluate the run again") from error


def rows_of(counts: Float[Tensor, "R 3"], store: Store, keys: Mapping[int, str]) -> list[Row]:
    """The rows of a store that are counted; a row whose comparisons are all ties is left out.

    Args:
        counts: the number of a row, how many of its comparisons are right, and how many count; a row may come again.
        store: the store.
        keys: from `prompt_keys`.
    """
    sums: dict[int, list[float]] = {}
    for row, right, count in counts.tolist():
        if count:
            total = sums.setdefault(int(row), [0.0, 0.0])
            total[0] += right
            total[1] += count
    described = {entry["row"]: entry for entry in store.rows()}
    return [
        Row(str(row), keys[row], right, pairs, str(described[row]["category"] or ""), str(described[row]["id"]))
        for row, (right, pairs) in sorted(sums.items())
    ]


def prompt_keys(store: Store) -> dict[int, str]:
    """For each row of a store a key of its prompt's tokens; a row without a prompt has one of its own."""
    return dict(pair for start in range(0, len(store), _CHUNK) for pair in _keys(store, start))


def _keys(store: Store, start: int) -> Iterator[tuple[int, str]]:
    groups = np.arange(start, min(start + _CHUNK, len(store)))
    batch = GroupBatch.from_arrays(store.pack(groups, np.ones(len(groups), np.float32)), len(groups))
    layout, tokens_T = batch.layout, batch.input_ids_T.numpy()
    # The hidden state that predicts a response's first scored token is that of its prompt's last token.
    first = np.full(batch.responses, len(tokens_T))
    np.minimum.at(first, batch.response_L.numpy(), batch.source_L.numpy())
    response_C = batch.better_C.tolist()
    for row, response in zip(batch.row_C.tolist(), response_C, strict=True):
        own = layout.responses[response]
        seen, end = layout.prefix[own], int(first[response]) + 1
        shared = tokens_T[layout.bounds[seen] : min(end, layout.bounds[seen + 1])]
        # Past the shared prompt, the last token lies among those of the response.
        alone = tokens_T[layout.bounds[own] : end] if end > layout.bounds[seen + 1] else tokens_T[:0]
        prompt = np.concatenate([shared, alone])
        # One token is a beginning-of-text mark, or the first of a whole text: nothing that was asked.
        yield row, hashlib.sha256(prompt.tobytes()).hexdigest()[:16] if len(prompt) > 1 else f"row {row}"
