"""The prompts of a prepared set, as text, so that a policy may answer them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from grmlight._data_rs import read_pairs
from grmlight.data.prepare import Prepared
from grmlight.data.source import pair_source
from grmlight.data.texts import PromptText


def set_prompts(prepared: Prepared) -> list[PromptText]:
    """The prompt of each group of a store, in its order."""
    found = read_pairs(pair_source(prepared.source), {"name": prepared.source})
    prompts = {found.row(index): found.group(index)[0] for index in range(len(found))}
    texts = [prompts[entry["row"]] for entry in prepared.store.rows()]
    return [text if isinstance(text, str) else tuple(text) for text in texts]


def distinct(prompts: Sequence[PromptText]) -> list[PromptText]:
    """Each prompt once, in the order in which they come."""
    return list({json.dumps(prompt): prompt for prompt in prompts}.values())
