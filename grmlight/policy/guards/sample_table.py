"""SampleTable: what the policy says, beside what it is rewarded for it, so that somebody may read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer

from grmlight.data.files import write_whole
from grmlight.evaluation.run_report import run_directory
from grmlight.models.judge_prompt import conversation_text
from grmlight.policy.guards.guard import Guard
from grmlight.policy.kl import Measured


class SampleTable(Guard):
    """A table of sampled answers with their rewards, at every so-manyth measurement.

    Written as `samples.jsonl` and `samples.md` in the run directory, and handed to loggers that have tables
    (`log_table`). All rows are in checkpoints, so a resumed run has the whole table.

    Args:
        prompts: so many of the measured prompts, the first ones; of each the first answer.
        every: measurements from one table to the next.
    """

    def __init__(self, prompts: int = 8, every: int = 1) -> None:
        super().__init__()
        if prompts < 1 or every < 1:
            raise ValueError(f"SampleTable: prompts and every must be at least 1, got {prompts}, {every}")
        self.prompts, self.every = prompts, every
        self.rows: list[dict[str, Any]] = []
        self.seen = 0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, and the measurements."""
        return {"rows": list(self.rows), "seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from them."""
        self.rows, self.seen = list(state_dict["rows"]), state_dict["seen"]

    def look(self, trainer: Trainer, prompts: Sequence[Measured]) -> None:
        """Add rows where it is time, and write all."""
        self.seen += 1
        if (self.seen - 1) % self.every:
            return
        fresh = [_row(trainer.global_step, each) for each in prompts[: self.prompts]]
        self.rows += fresh
        directory = run_directory(trainer)
        if directory is not None and trainer.is_global_zero:
            write_whole(directory / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
            write_whole(directory / "samples.md", _markdown(self.rows))
        if trainer.is_global_zero:
            columns = list(fresh[0])
            data = [[row[name] for name in columns] for row in fresh]
            for logger in trainer.loggers:
                if (log_table := getattr(logger, "log_table", None)) is not None:
                    log_table("samples", columns=columns, data=data, step=trainer.global_step)


def _row(step: int, measured: Measured) -> dict[str, Any]:
    answer = measured.rollout.answers[0]
    row: dict[str, Any] = {"step": step, "prompt": conversation_text(measured.rollout.prompt), "answer": answer.text}
    row |= {"tokens": len(answer.tokens), "ended": answer.ended, "kl_k1": measured.kl["k1"][0]}
    return row | {name: values[0] for name, values in measured.rewards.items()}


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[name]) for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", "<br>")
