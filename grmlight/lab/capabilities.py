"""WorldExperts: the embedded world's pairs for experts. Topics are tasks, parts of the gold are capabilities."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from grmlight.data.files import cache_directory, write_whole
from grmlight.data.source import fingerprint
from grmlight.lab.datamodule import WorldData
from grmlight.lab.files import WorldFiles
from grmlight.lab.gold import Gold, parts
from grmlight.lab.world import Prompt

CAPABILITIES = ("fact", "count", "style")
"""Parts of the gold that pairs are labeled for."""


class WorldExperts(WorldData):
    """As `WorldData`; every second training pair is labeled for one capability in the place of its overall label.

    So the number of labels is that of the same pairs without capabilities. A capability's label is the exact order of
    that part of the gold, as of a careful judge of one thing; pairs that no capability tells apart stay as they are.
    """

    def _training_file(self, files: WorldFiles) -> Path:
        target = cache_directory() / "experts" / f"{fingerprint(str(files.train))[:32]}.jsonl"
        if not target.exists():
            with gzip.open(files.train, "rt", encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
            labeled = [labeled_for_one(row, files.gold, number // 2) for number, row in enumerate(rows) if number % 2]
            rows[1::2] = labeled
            write_whole(target, "".join(json.dumps(row) + "\n" for row in rows))
        return target


def labeled_for_one(row: dict[str, Any], gold: Gold, turn: int) -> dict[str, Any]:
    """A pair labeled for a capability, by turns; the first from there on that tells its sides apart, or none."""
    prompt = Prompt.parse(row["prompt"])
    chosen, rejected = (parts(gold.world, prompt, row[side]) for side in ("chosen", "rejected"))
    for place in range(len(CAPABILITIES)):
        name = CAPABILITIES[(turn + place) % len(CAPABILITIES)]
        gap = getattr(chosen, name) - getattr(rejected, name)
        if gap:
            sides = (row["chosen"], row["rejected"]) if gap > 0 else (row["rejected"], row["chosen"])
            return row | {"chosen": sides[0], "rejected": sides[1], "margin": abs(gap), "capability": name}
    return row
