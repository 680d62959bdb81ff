"""The journal: a judge's replies on disk, one by one as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from grmlight.data.files import write_whole
from grmlight.policy.winrate.judges import Asked, PairJudge, Reply


class Journal:
    """Replies by the number of their question, under a line that says what the questions are.

    Args:
        path: the file; it is begun if it is not there, and what a killed run left of its last line is cut off.
        identity: of the questions and of who is asked, as plain values.

    Attributes:
        replies: so far.

    Errors: ValueError for a file of other questions, and for a line that is no reply.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.replies: dict[int, Reply] = {}
        head = json.dumps(identity) + "\n"
        if not path.exists():
            write_whole(path, head)
        text = path.read_text(encoding="utf-8")
        if not text.startswith(head):
            raise ValueError(f"{path}: is of other answers or another judge; remove it, or name another --out")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_whole(path, whole)
        for number, line in enumerate(whole.splitlines()[1:], 2):
            try:
                question, reply = json.loads(line)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: line {number} is no reply; remove the file") from error
            self.replies[question] = reply

    def ask(self, judge: PairJudge, questions: Sequence[Asked]) -> list[Reply]:
        """All replies; what is not there yet is asked for.

        Errors: ValueError of the judge, with what was kept.
        """
        missing = [number for number in range(len(questions)) if number not in self.replies]
        have = len(questions) - len(missing)
        with (
            self.path.open("a", encoding="utf-8") as file,
            tqdm(desc=f"asking {judge.name}", total=len(questions), initial=have, unit=" questions", delay=2) as bar,
        ):
            for start in range(0, len(missing), judge.at_once):
                numbers = missing[start : start + judge.at_once]
                try:
                    for place, reply in judge.ask([questions[number] for number in numbers]):
                        file.write(json.dumps([numbers[place], reply]) + "\n")
                        file.flush()
                        self.replies[numbers[place]] = reply
                        bar.update()
                except ValueError as error:
                    kept = f"{self.path} keeps {len(self.replies)} replies; run it again to go on"
                    raise ValueError(f"{error}. {kept}") from error
                finally:
                    os.fsync(file.fileno())
        return [self.replies[number] for number in range(len(questions))]
