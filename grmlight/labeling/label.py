"""Capability labels for a file of pairs.

Notable decisions:

- Each question is asked twice, with the answers swapped; a label is kept only if both replies name the same answer.
- Replies are appended to a journal beside the output at once and in the order of the questions, however many are asked
  together. A run that was stopped goes on after the last whole line; the output is made of the journal, in one piece.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from grmlight.data.files import write_whole
from grmlight.data.pairs import NumberedPair, numbered_pairs
from grmlight.data.source import fingerprint
from grmlight.labeling.ask import Asker, Letter, Question

ANY = "*"
"""The category whose capabilities are those of all others."""


@dataclasses.dataclass(frozen=True)
class Labeled:
    """What came of it.

    Attributes:
        pairs: pairs that were asked about.
        kept: labels by capability.
        split: questions by capability whose two replies named different answers.
        unreadable: questions by capability with a reply that names none.
    """

    pairs: int
    kept: dict[str, int]
    split: dict[str, int]
    unreadable: dict[str, int]

    def describe(self) -> str:
        """A line a capability."""
        lines = [f"{self.pairs} pairs"]
        for name in self.kept:
            counts = (self.kept[name], self.split[name], self.unreadable[name])
            lines.append(f"  {name}: {counts[0]} kept, {counts[1]} not agreed with itself, {counts[2]} unreadable")
        return "\n".join(lines)


def read_capabilities(path: Path) -> dict[str, dict[str, str]]:
    """A YAML or JSON file `{category: {capability: description}}`; the category `*` stands for all others.

    Errors: ValueError that names the file and what is wrong with it.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as YAML or JSON ({' '.join(str(error).split())})") from error
    whole = isinstance(found, dict) and found
    if not whole or not all(isinstance(each, dict) and each for each in found.values()):
        raise ValueError(f"{path}: give {{category: {{capability: description}}}}, with * for any category")
    return {
        str(task): {str(name): str(text or "") for name, text in capabilities.items()}
        for task, capabilities in found.items()
    }


def label(source: str, out: Path, capabilities: dict[str, dict[str, str]], asker: Asker) -> Labeled:
    """Write the pairs with a `capability` column: a row for each label that was kept.

    Args:
        source: pairs, in any form that `grmlight prepare` takes.
        out: the JSON lines to write; `OUT.part` beside it is the journal.
        capabilities: for each category those that its pairs are asked about.
        asker: the language model.

    Errors: ValueError in one line; the journal keeps what was asked, and the same call goes on from there.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"{out}: cannot be written; name a file in a folder that exists")
    if out.exists() and Path(source).exists() and Path(source).resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"{out}: is the source, or lies in it; name another file with --out")
    pairs = numbered_pairs(source)
    questions = [asked for pair in pairs for asked in _questions(pair, capabilities)]
    if not questions:
        raise ValueError(f"{source}: no pair has a category of the capabilities file ({', '.join(capabilities)})")
    journal = _Journal(out.with_name(f"{out.name}.part"), _identity(source, capabilities, asker))
    try:
        replies = _ask_all([question for _, question in questions], journal, asker)
    except ValueError as error:
        raise ValueError(f"{error}. {journal.path} keeps {journal.count} replies; run it again to go on") from error
    labeled = list(zip(questions, replies, strict=True))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for each, reply in labeled if (row := _row(*each, reply))]
    write_whole(out, "".join(lines))
    journal.path.unlink()
    return _summary([(question, reply) for (_, question), reply in labeled], len({id(pair) for pair, _ in questions}))


Reply = tuple[Letter | None, Letter | None]
"""The letters named for a question, and for the same with its answers swapped."""


def _questions(pair: NumberedPair, capabilities: dict[str, dict[str, str]]) -> Iterator[tuple[NumberedPair, Question]]:
    for name, text in capabilities.get(pair.category or "", capabilities.get(ANY, {})).items():
        yield pair, Question(pair.prompt, pair.chosen, pair.rejected, name, text)


def _winner(reply: Reply) -> Letter | None:
    """The letter of the answer that both replies name, as in the first of the two."""
    first, second = reply
    return first if first and second and first != second else None


def _row(pair: NumberedPair, question: Question, reply: Reply) -> dict[str, Any] | None:
    if (winner := _winner(reply)) is None:
        return None
    better, worse = (pair.chosen, pair.rejected) if winner == "A" else (pair.rejected, pair.chosen)
    row: dict[str, Any] = {"id": f"{pair.id}:{question.capability}", "category": pair.category}
    row |= {"prompt": pair.prompt, "chosen": better, "rejected": worse, "capability": question.capability}
    return {name: value for name, value in row.items() if value is not None}


def _ask_all(questions: list[Question], journal: _Journal, asker: Asker) -> list[Reply]:
    def twice(question: Question) -> Reply:
        return asker.ask(question), asker.ask(question.swapped)

    replies = journal.replies()
    waiting = iter(questions[len(replies) :])
    with (
        ThreadPoolExecutor(asker.parallel) as pool,
        journal.opened() as file,
        tqdm(desc="asking", total=len(questions), initial=len(replies), unit=" questions", delay=2) as bar,
    ):
        while window := list(islice(waiting, 4 * asker.parallel)):
            for reply in pool.map(twice, window):
                file.write(json.dumps(reply) + "\n")
                file.flush()
                journal.count += 1
                replies.append(reply)
                bar.update()
    return replies


class _Journal:
    """Replies in the order of their questions, a line each, under a line that says what the questions are."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.count, self._head = path, 0, json.dumps({"questions": identity}) + "\n"

    def replies(self) -> list[Reply]:
        """The replies so far; what a killed run left of its last line is cut off.

        Errors: ValueError if the file is of other questions.
        """
        if not self.path.exists():
            write_whole(self.path, self._head)
        text = self.path.read_text(encoding="utf-8")
        if not text.startswith(self._head):
            raise ValueError(f"{self.path}: is of other pairs, capabilities or another model; remove it to begin anew")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_whole(self.path, whole)
        lines = whole.splitlines()[1:]
        self.count = len(lines)
        return [(first, second) for first, second in map(json.loads, lines)]

    def opened(self) -> Any:
        """For appending."""
        return self.path.open("a", encoding="utf-8")


def _identity(source: str, capabilities: dict[str, dict[str, str]], asker: Asker) -> str:
    described = [fingerprint(source), capabilities, asker.name]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _summary(labeled: list[tuple[Question, Reply]], pairs: int) -> Labeled:
    names = dict.fromkeys(question.capability for question, _ in labeled)
    kept, split, unreadable = (dict.fromkeys(names, 0) for _ in range(3))
    for question, reply in labeled:
        counted = unreadable if None in reply else split if _winner(reply) is None else kept
        counted[question.capability] += 1
    return Labeled(pairs, kept, split, unreadable)
