"""Win rates as text, Markdown and JSON, in the shape of the GRM paper's Table 14: win, tie and loss of a method."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from grmlight.evaluation.clustered import Interval
from grmlight.policy.winrate.answers import Answers
from grmlight.policy.winrate.figures import Figures, Shares

PUBLISHED = (
    ("paper: GRM against vanilla, gemma-2b-it reward model", (68, 5, 27)),
    ("paper: GRM against vanilla, Mistral-7B reward model", (73, 6, 21)),
)
"""Rows of Table 14 (arXiv 2406.10216): PPO's policy of gemma-2b-it, judged by GPT-4o; in %."""

_HEADER = ("method", "win", "tie", "loss", "win + tie/2", "pairs", "prompts")


@dataclasses.dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        label: what its policy is called.
        figures: against the policy that all are compared with.
        unpaired: answers, of both, that met none of the other's: one of them gave more of them to a prompt.
    """

    label: str
    figures: Figures
    unpaired: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of a comparison.

    Attributes:
        judge: who judged.
        against: the policy that all others are compared with.
        rows: a method each.
        answers: of all policies, the one compared with last.
        prompts: asked for.
        repeated: rows of the prompt file whose prompt came before.
        length_ratio: see `figures`.
    """

    judge: str
    against: str
    rows: Sequence[Row]
    answers: Sequence[Answers]
    prompts: int
    repeated: int
    length_ratio: float

    def describe(self) -> str:
        """For a terminal."""
        return as_text(self)


def as_text(report: Report) -> str:
    """For a terminal."""
    table = [_HEADER, *_rows(report)]
    widths = [max(len(line[place]) for line in table) for place in range(len(_HEADER))]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in table]
    rule = "-" * max(map(len, lines))
    return "\n".join([_title(report), lines[0], rule, *lines[1:], rule, *_notes(report)])


def as_markdown(report: Report) -> str:
    """The same as Markdown."""
    lines = [_HEADER, ("---", *["---:"] * (len(_HEADER) - 1)), *_rows(report)]
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"## {_title(report)}", "", *table, "", *(f"- {note}" for note in _notes(report))]) + "\n"


def as_json(report: Report) -> dict[str, Any]:
    """Everything as plain values; shares are between 0 and 1, and what is not defined is null."""
    return {
        "judge": report.judge,
        "against": report.against,
        "prompts": report.prompts,
        "repeated_prompts": report.repeated,
        "length_ratio": report.length_ratio,
        "rows": [{"method": row.label, "unpaired_answers": row.unpaired, **_plain(row.figures)} for row in report.rows],
        "policies": [
            {
                "label": each.label,
                "file": str(each.file),
                "answers": sum(map(len, each.answers)),
                "without_answers": {str(place + 1): reason for place, reason in each.missing.items()},
                "rows_not_asked_for": each.unused,
                "sampler": each.sampler,
                "sampling_seconds": each.seconds,
            }
            for each in report.answers
        ],
    }


def _title(report: Report) -> str:
    return f"win, tie and loss against {report.against}, in %, judged by {report.judge}"


def _rows(report: Report) -> list[tuple[str, ...]]:
    lines = []
    for row in report.rows:
        found = row.figures
        lines += _of(row.label, found.raw)
        lines += _of(f"  lengths within {report.length_ratio:g}x", found.matched)
        blank = ("", "", "")
        lines.append(("  at equal length, by regression", *blank, _percent(found.controlled), "", ""))
        lines.append(("    95% interval", *blank, _bounds(found.controlled), "", ""))
    lines += [(label, *map(str, values), f"{values[0] + values[1] / 2:g}", "", "") for label, values in PUBLISHED]
    return lines


def _of(label: str, found: Shares) -> list[tuple[str, ...]]:
    values = (found.win, found.tie, found.loss, found.rate)
    return [
        (label, *map(_percent, values), str(found.pairs), str(found.prompts)),
        (f"{' ' * (len(label) - len(label.lstrip()))}  95% interval", *map(_bounds, values), "", ""),
    ]


def _percent(figure: Interval) -> str:
    return "-" if math.isnan(figure.value) else f"{100 * figure.value:.1f}"


def _bounds(figure: Interval) -> str:
    return "-" if math.isnan(figure.low) else f"[{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def _notes(report: Report) -> list[str]:
    notes = [f"{report.prompts} prompts; intervals draw whole prompts; both orders asked, disagreement is a tie"]
    if report.repeated:
        notes.append(f"{report.repeated} rows repeat a prompt, which was asked once")
    for row in report.rows:
        notes += _position(row)
        if row.unpaired:
            notes.append(
                f"{row.label}: {row.unpaired} answers were not compared, as a side gave fewer to their prompts"
            )
        if row.figures.unread:
            notes.append(f"{row.label}: {row.figures.unread} pairs without a verdict, left out")
        if row.figures.identical:
            notes.append(f"{row.label}: {row.figures.identical} pairs of equal answers are ties without being asked")
        notes.append(f"{row.label}: {row.figures.length:.0f} characters an answer, against {row.figures.other:.0f}")
    for each in report.answers:
        if each.missing:
            place, reason = next(iter(each.missing.items()))
            notes.append(f"{each.label}: no answer to {len(each.missing)} prompts, the first is {place + 1} ({reason})")
        if each.unused:
            notes.append(f"{each.label}: {each.unused} rows answer no prompt that was asked for")
        if each.sampler:
            notes.append(f"{each.label}: sampled by {each.sampler} in {each.seconds:.1f} s")
    return [*notes, "paper: Table 14 of arXiv 2406.10216, policies of PPO, judged by GPT-4o"]


def _position(row: Row) -> list[str]:
    found = row.figures.position
    if not found.agreed.n:
        return []
    return [
        f"{row.label}: the judge agrees with itself on {_percent(found.agreed)}% of {found.agreed.n} pairs, and names "
        f"the answer shown first in {_percent(found.first)}% {_bounds(found.first)} of its choices (50 without bias); "
        f"{found.both_first} pairs were ties for naming the first one twice, {found.both_second} the second"
    ]


def _plain(value: Any) -> Any:
    """Dataclasses and intervals as plain values."""
    if isinstance(value, Interval):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return None if isinstance(value, float) and not math.isfinite(value) else value
