"""Results as JSON, and as the tables of docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured figure; floor and target are bounds from below unless `at_most`."""

    figure: str
    value: float
    unit: str
    floor: float | None = None
    target: float | None = None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """Whether it meets its floor and target."""
        if self.floor is None or self.target is None:
            return ""
        sign = -1 if self.at_most else 1
        if sign * self.value < sign * self.floor:
            return "**below the floor**"
        return "target" if sign * self.value >= sign * self.target else "floor"


def machine() -> dict[str, str]:
    """What it ran on, and with what."""
    packages = ("torch", "transformers", "trl", "peft", "lightning", "tokenizers")
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": _processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, 1 thread",
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def write_json(part: str, rows: list[Row], path: Path) -> None:
    """Replace the rows of one part in `{machine, rows}`; each row has figure, value, unit, floor, target and more."""
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    found = [{"part": part, "date": machine()["date"], **dataclasses.asdict(row)} for row in rows]
    entries = [entry for entry in kept if entry["part"] != part] + found
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": entries}, indent=1) + "\n")


def write_tables(path: Path, result: Path) -> None:
    """Replace the part of the page between the markers of the result's name by what it says."""
    begin, end = f"<!-- {result.stem} -->", f"<!-- /{result.stem} -->"
    found = json.loads(result.read_text())
    names = [field.name for field in dataclasses.fields(Row)]
    rows = [Row(**{name: entry[name] for name in names}) for entry in found["rows"]]
    judged = [row for row in rows if row.floor is not None]
    others = [row for row in rows if row.floor is None]
    machine_line = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    text = "\n".join(
        [
            begin,
            "",
            machine_line + ".",
            "",
            "| figure | value | floor | target | meets |",
            "|---|---|---|---|---|",
            *(
                f"| {r.figure} | {_number(r.value)} {r.unit} | {r.floor:.3g} | {r.target:.3g} | {r.verdict} |"
                for r in judged
            ),
            "",
            "| figure without a floor | value |",
            "|---|---|",
            *(f"| {row.figure} | {_number(row.value)} {row.unit} |" for row in others),
            "",
            end,
        ]
    )
    page = path.read_text()
    before, rest = page.split(begin)
    path.write_text(before + text + rest.split(end)[1])


def _number(value: float) -> str:
    return f"{value:.3g}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()
