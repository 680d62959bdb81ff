"""What a model got right, row by row: the file that a paired comparison of two runs needs.

`rows-SET.json` in a run directory is one JSON object: `source`, `fingerprint` (of the source's content) and `rows`, one
a line, each with `row`, `prompt` (a key: rows of one prompt have the same), `right`, `pairs`, `category` and `id`.
`right` / `pairs` is the row's accuracy; a set's accuracy is the sum of `right` over the sum of `pairs`, so both may be
multiplied by a row's weight.

Shape suffixes: C comparisons, R rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from grmlight._data_rs import Store
from grmlight.data.batch import GroupBatch
from grmlight.data.files import write_whole
from grmlight.evaluation.pair_figures import sum_dtype

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
    """

    row: str
    prompt: str
    right: float
    pairs: float = 1.0
    category: str = ""
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one evaluation set, and which data they are of."""

    source: str
    fingerprint: str
    rows: list[Row]


def rows_file(folder: Path, name: str) -> Path:
    """Where a run keeps the rows of a set."""
    return folder / f"rows-{name}.json"


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


def row_counts(rewards_N: Float[Tensor, " N"], batch: GroupBatch) -> Float[Tensor, "C 3"]:
    """For each comparison its row, what is right of it, and whether it counts (no tie, no filler). On its device."""
    side_C = (batch.label_C - 0.5).sign()
    count_C = side_C.abs() * batch.count_G[batch.group_C]
    predicted_C = (rewards_N[batch.better_C] - rewards_N[batch.worse_C]).sign()
    columns = (batch.row_C, (predicted_C * side_C + 1) / 2 * count_C, count_C)
    return torch.stack([column.to(sum_dtype(rewards_N.device)) for column in columns], dim=1)


def rows_of(counts: Float[Tensor, "C 3"], store: Store) -> list[Row]:
    """The rows of a store that some comparison of `counts` is of; a row whose comparisons are all ties is left out."""
    sums: dict[int, list[float]] = {}
    for row, right, count in counts.tolist():
        if count:
            total = sums.setdefault(int(row), [0.0, 0.0])
            total[0] += right
            total[1] += count
    described = {entry["row"]: entry for entry in store.rows()}
    keys = prompt_keys(store)
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
