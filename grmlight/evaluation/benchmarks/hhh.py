"""HHH alignment: 221 pairs on being helpful, honest and harmless."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from grmlight.data.render import Message
from grmlight.evaluation.benchmarks.benchmark import Benchmark, counted
from grmlight.evaluation.benchmarks.example import Example, Reading, Refused, checked, pair, text

COUNTS = {"harmless": 58, "helpful": 59, "honest": 61, "other": 43}
"""Pairs of each category."""

_MARKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_PARQUET = "hf://datasets/HuggingFaceH4/hhh_alignment@refs/convert/parquet/{}/test/*.parquet"


class HHHAlignment(Benchmark):
    """HHH alignment (Askell et al., arXiv 2112.00861).

    Reads the origin's rows (`input`, `targets`) and pairs (`prompt`, `chosen`, `rejected`); the category is a column
    or the file's name. Prompts that hold a dialogue are cut into turns at their Human and Assistant markers, as the GRM
    authors do. The score is over all pairs; one with equal rewards is wrong.
    """

    name = "hhh"
    hub = tuple((name, _PARQUET.format(name)) for name in COUNTS)
    columns = ()

    def missing(self, values: Mapping[str, Any]) -> list[str]:
        """Columns that a row lacks."""
        origin = super().missing(values) + [name for name in ("input", "targets") if name not in values]
        pairs = [name for name in ("prompt", "chosen", "rejected") if name not in values]
        return origin if origin and pairs else []

    def example(self, row: Mapping[str, Any], part: str, reading: Reading, label: str) -> Example:
        """A pair."""
        category = str(row.get("category") or part)
        if category not in COUNTS:
            raise Refused("unknown_category")
        if "input" in row:
            prompt, (better, worse) = text(row, "input"), _targets(row["targets"])
        else:
            prompt, better, worse = text(row, "prompt"), text(row, "chosen"), text(row, "rejected")
        turns = dialogue(prompt)
        if turns is None:
            reading.note("dialogue_kept_as_text", label)
        return Example(label, category, pair(prompt if turns is None else turns, better, worse))

    def check(self, reading: Reading) -> None:
        """Note the categories that are not there in their published number."""
        found = dict(counted(reading))
        for name, count in COUNTS.items():
            if found.get(name, 0) != count:
                reading.note("category_not_whole", f"{name}: {found.get(name, 0)} of {count}")


def dialogue(prompt: str) -> str | tuple[Message, ...] | None:
    """The turns of a prompt with markers, the prompt itself without any; None if they do not alternate."""
    first, *rest = _MARKER.split(prompt)
    if not rest:
        return prompt
    turns = [("Human", first), *zip(rest[::2], rest[1::2], strict=True)]
    if [speaker for speaker, _ in turns] != ["Human", "Assistant"] * (len(turns) // 2) + ["Human"]:
        return None
    return tuple({"role": _ROLES[speaker], "content": said.strip()} for speaker, said in turns)


def _targets(targets: Any) -> tuple[str, str]:
    choices, labels = (targets.get(name) for name in ("choices", "labels")) if isinstance(targets, dict) else (0, 0)
    if not isinstance(choices, list) or len(choices) != 2 or labels not in ([0, 1], [1, 0]):
        raise Refused("unknown_targets")
    return checked(choices[labels.index(1)]), checked(choices[labels.index(0)])
