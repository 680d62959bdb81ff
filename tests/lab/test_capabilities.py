"""The embedded world's pairs for experts."""

import gzip
import json

from grmlight.lab import WorldExperts, world_files
from grmlight.lab.capabilities import CAPABILITIES
from grmlight.lab.gold import parts
from grmlight.lab.world import Prompt


def test_every_second_pair_is_labeled_by_a_part_of_the_gold(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path))
    data = WorldExperts(pairs=200)
    data.prepare_data()
    files = world_files(0)
    with gzip.open(files.train, "rt") as file:
        before = [json.loads(line) for line in file]
    with open(data.train) as file:
        after = [json.loads(line) for line in file]
    assert len(after) == len(before)
    assert after[::2] == before[::2]
    labeled = [row for row in after if "capability" in row]
    assert len(labeled) > 0.8 * len(after) / 2
    assert {row["capability"] for row in labeled} == set(CAPABILITIES)
    for old, row in zip(before, after, strict=True):
        assert {old["chosen"], old["rejected"]} == {row["chosen"], row["rejected"]}
        if "capability" in row:
            asked = Prompt.parse(row["prompt"])
            better, worse = (parts(files.gold.world, asked, row[side]) for side in ("chosen", "rejected"))
            assert getattr(better, row["capability"]) > getattr(worse, row["capability"])
