"""Rows of a benchmark: of a local copy, always; of the hub's data set, when online."""

from __future__ import annotations

import gzip
import json
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from grmlight.data.source import as_json_lines

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")


class SourceRow(NamedTuple):
    """A row as it is in its file.

    Attributes:
        label: its number from 1, behind the name of its file or split where there are several.
        part: the name of the file (without endings), its folder, or the split.
        values: its columns, or None for a line that is no JSON object.
    """

    label: str
    part: str
    values: dict[str, Any] | None


def local_rows(path: Path) -> Iterator[SourceRow]:
    """The rows of a file or of all files in a folder: JSON lines (.gz too), a JSON list, or Parquet.

    Errors: ValueError in one line if there is nothing to read.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; check the path")
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.name.endswith(_SUFFIXES))
    saved = path.is_dir() and any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))
    if saved:
        files = [path]
    if not files:
        raise ValueError(f"{path}: holds no file that ends with {', '.join(_SUFFIXES)}; name a file or such a folder")
    for file in files:
        name = str(file.relative_to(path)) if len(files) > 1 else ""
        yield from _rows_of(str(file), f"{name}:" if name else "", part=_part(file, path))


def hub_rows(sources: Iterable[tuple[str, str]], benchmark: str) -> Iterator[SourceRow]:
    """The rows of a hub's data sets, given with the names of their parts.

    Errors: ValueError in one line if one cannot be loaded.
    """
    given = tuple(sources)
    for part, source in given:
        try:
            yield from _rows_of(source, f"{part}:" if len(given) > 1 else "", part)
        except ValueError as error:
            raise ValueError(
                f"{benchmark}: {error}; where there is no hub, give a local copy: {benchmark}=PATH"
            ) from error


def _part(file: Path, root: Path) -> str:
    """`harmless` for harmless.jsonl, and for harmless/test/0000.parquet."""
    relative = file.relative_to(root).parts if root.is_dir() and file != root else ()
    return relative[0] if len(relative) > 1 else file.name.split(".")[0]


def _rows_of(source: str, prefix: str, part: str) -> Iterator[SourceRow]:
    with tempfile.TemporaryDirectory() as scratch, as_json_lines(source, Path(scratch)) as path:
        try:
            for number, values in _objects(Path(path)):
                yield SourceRow(f"{prefix}{number}", part, values if isinstance(values, dict) else None)
        except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{source}: cannot be read as JSON lines ({error})") from error


def _objects(path: Path) -> Iterator[tuple[int, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        if path.suffix == ".json" and file.read(1) == "[":
            file.seek(0)
            yield from enumerate(_parsed(file.read()) or [], 1)
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _parsed(line)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
