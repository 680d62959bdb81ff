"""MT-Bench's judgments by humans and GPT-4: the GRM paper's way of reading them, and a clean one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grmlight.data.render import Message
from grmlight.data.texts import TextGroup
from grmlight.evaluation.benchmarks.benchmark import Benchmark
from grmlight.evaluation.benchmarks.example import Example, Reading, Refused, pair

_HUB = "lmsys/mt_bench_human_judgments"
_CONVERSATIONS = ("conversation_a", "conversation_b")


class MTBench(Benchmark):
    """MT-Bench human judgments (Zheng et al., arXiv 2306.05685) as the GRM paper's program reads them.

    Humans' and GPT-4's verdicts together. Whatever is no win of model A is a win of B: ties too, which are noted. The
    verdict on the first turn is taken for that on both. Equal rewards, and equal conversations, count as wrong.
    """

    name = "mtbench"
    hub = (("human", f"{_HUB}:human"), ("gpt4_pair", f"{_HUB}:gpt4_pair"))
    columns = (*_CONVERSATIONS, "winner", "turn")

    def example(self, row: Mapping[str, Any], part: str, reading: Reading, label: str) -> Example:
        """A pair of whole conversations."""
        sides = [_conversation(row[name]) for name in _CONVERSATIONS]
        if str(row["winner"]).startswith("tie"):
            reading.note("tie_counted_as_win_of_b", label)
        if row["turn"] == 1:
            reading.note("verdict_on_turn_1_taken_for_both", label)
        for side in sides:
            if not side[-1]["content"].strip():
                reading.note("empty", label)
        if row["winner"] != "model_a":
            sides.reverse()
        prompt, better, worse = _parted(*sides)
        if better == worse:
            reading.note("identical", label)
        return Example(label, _judge(row, part), TextGroup(prompt, (better, worse)))


class MTBenchClean(Benchmark):
    """MT-Bench human judgments without ties, each verdict on the turns that it is about."""

    name = "mtbench_clean"
    hub = MTBench.hub
    columns = MTBench.columns
    equal = 0.5

    def example(self, row: Mapping[str, Any], part: str, reading: Reading, label: str) -> Example:
        """A pair of conversations up to the turn that was judged."""
        winner = str(row["winner"])
        if winner.startswith("tie"):
            raise Refused("tie")
        if winner not in ("model_a", "model_b"):
            raise Refused("unknown_winner")
        if row["turn"] not in (1, 2):
            raise Refused("unknown_turn")
        messages = 2 * int(row["turn"])
        sides = [_conversation(row[name])[:messages] for name in _CONVERSATIONS]
        if any(len(side) != messages for side in sides):
            raise Refused("turn_not_there")
        if any(not message["content"].strip() for side in sides for message in side):
            raise Refused("empty")
        if winner == "model_b":
            sides.reverse()
        return Example(label, _judge(row, part), pair(*_parted(*sides)))


def _judge(row: Mapping[str, Any], part: str) -> str:
    """Who judged: by the column, else by the split."""
    judge = str(row["judge"]) if row.get("judge") else part
    return "gpt4_pair" if judge.lower().startswith(("gpt", "['gpt")) else "human"


def _conversation(value: Any) -> list[Message]:
    """Messages that begin with a user's and end with an assistant's, by turns."""
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise Refused("non_string")
    if not all(isinstance(message.get("content"), str) for message in value):
        raise Refused("non_string")
    if not value or [message.get("role") for message in value] != ["user", "assistant"] * (len(value) // 2):
        raise Refused("role_order")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _parted(better: list[Message], worse: list[Message]) -> tuple[tuple[Message, ...], Any, Any]:
    """The first question, which both share, and what follows it on each side."""
    if better[0] != worse[0]:
        raise Refused("prompt_differs")
    return (better[0],), tuple(better[1:]), tuple(worse[1:])
