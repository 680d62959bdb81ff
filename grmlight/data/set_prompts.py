"""The prompts of a prepared set, as text, so that a policy may answer them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from grmlight._data_rs import read_pairs
from grmlight.data.prepare import Prepared
from grmlight.data.source import as_json_lines
from grmlight.data.texts import PromptText


def set_prompts(prepared: Prepared) -> list[PromptText]:
    """The prompt of each group of a store, in its order."""
    with tempfile.TemporaryDirectory() as folder, as_json_lines(prepared.source, Path(folder)) as path:
        found = read_pairs(path, {"name": prepared.source})
        prompts = {found.row(index): found.group(index)[0] for index in range(len(found))}
    texts = [prompts[entry["row"]] for entry in prepared.store.rows()]
    return [text if isinstance(text, str) else tuple(text) for text in texts]


def distinct(prompts: Sequence[PromptText]) -> list[PromptText]:
    """Each prompt once, in the order in which they come."""
    return list({json.dumps(prompt): prompt for prompt in prompts}.values())
