"""Rows of a benchmark: of a local copy, always; of the hub's data set, when online."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from grmlight.data.source import as_json_lines, is_gzip

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_LINES = (".jsonl", ".jsonl.gz")
_ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json")
"""Files of a data set's folder that hold no rows."""
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}\b.*")


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


class LocalCopy(NamedTuple):
    """What is read of a file or a folder.

    Attributes:
        root: the file or folder.
        parts: the files to read, and folders that `datasets.save_to_disk` wrote, each with the name of its part.
        left_out: names of those that belong to splits which the benchmark does not have.
    """

    root: Path
    parts: dict[Path, str]
    left_out: list[str]

    def rows(self) -> Iterator[SourceRow]:
        """Their rows. Errors: ValueError in one line for what cannot be read."""
        for file, part in self.parts.items():
            prefix = f"{file.relative_to(self.root)}:" if len(self.parts) > 1 else ""
            yield from _rows_of(str(file), prefix, part)


def local_copy(path: Path, hub: Iterable[tuple[str, str]] = ()) -> LocalCopy:
    """Find the rows of a file or of all files in a folder: JSON lines (.gz too), a JSON list, Parquet, saved data sets.

    Args:
        path: the file or folder.
        hub: see `Benchmark`. Of a folder in which files are named by these splits, as in clones of the hub's data
            sets, only these are read.

    Errors: ValueError in one line if there is nothing to read, or several splits of which none is known.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; check the path")
    found = [path] if path.is_file() else _files(path)
    if not found:
        raise ValueError(f"{path}: holds no file that ends with {', '.join(_SUFFIXES)}; name a file or such a folder")
    chosen: dict[Path, str] = {}
    for part, source in hub if path.is_dir() else ():
        name, _, split = source.partition(":") if not source.startswith("hf://") else ("", "", "")
        of_split = [file for file in found if file not in chosen and _is_named(file.relative_to(path), split or part)]
        config = name.partition("@")[2]
        of_config = [file for file in of_split if config in file.relative_to(path).parts]
        chosen |= dict.fromkeys(of_config or of_split, part)
    if not chosen:
        _check_splits(path, found)
        return LocalCopy(path, {file: _part(file, path) for file in found}, [])
    return LocalCopy(path, chosen, [str(file.relative_to(path)) for file in found if file not in chosen])


def source_rows(source: str) -> Iterator[SourceRow]:
    """The rows of whatever training takes by name. Errors: ValueError in one line if it cannot be loaded."""
    return _rows_of(source, "", "")


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


def _files(folder: Path) -> list[Path]:
    """Files with rows, or the folders that `save_to_disk` wrote: each has a state.json."""
    files = [each for each in folder.rglob("*") if not any(p.startswith(".") for p in each.relative_to(folder).parts)]
    saved = sorted(each.parent for each in files if each.name == "state.json")
    return saved or sorted(each for each in files if each.name.endswith(_SUFFIXES) and each.name not in _ABOUT)


def _is_named(file: Path, split: str) -> bool:
    """Whether a file is of a split: in a folder of that name, or called SPLIT.jsonl or SPLIT-00000-of-00001.parquet."""
    return split in file.parts or re.match(rf"{re.escape(split)}[-.]", file.name) is not None


def _check_splits(folder: Path, files: list[Path]) -> None:
    """Refuse the splits of one data set where nobody says which is meant."""
    splits = {found["split"]: file for file in files if (found := _SHARD.fullmatch(file.name))}
    if (folder / "dataset_dict.json").exists():
        splits = {file.name: file for file in files}
    if len(splits) > 1:
        raise ValueError(
            f"{folder}: holds the splits {', '.join(splits)}; name one of them, as in {next(iter(splits.values()))}"
        )


def _part(file: Path, root: Path) -> str:
    """`harmless` for harmless.jsonl, and for harmless/test/0000.parquet."""
    relative = file.relative_to(root).parts if root.is_dir() and file != root else ()
    return relative[0] if len(relative) > 1 else file.name.split(".")[0]


def _rows_of(source: str, prefix: str, part: str) -> Iterator[SourceRow]:
    with tempfile.TemporaryDirectory() as scratch, as_json_lines(source, Path(scratch)) as path:
        try:
            for number, values in _objects(Path(path)):
                yield SourceRow(f"{prefix}{number}", part, values if isinstance(values, dict) else None)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{source}: line {error.lineno}, column {error.colno}: the JSON list is broken or cut off "
                f"({error.msg}); get the file again"
            ) from error
        except (UnicodeDecodeError, EOFError, OSError, RecursionError, zlib.error) as error:
            raise ValueError(f"{source}: cannot be read as JSON lines ({error})") from error


def _objects(path: Path) -> Iterator[tuple[int, Any]]:
    opener = gzip.open if path.suffix == ".gz" or is_gzip(path) else open
    # As the reader of training pairs: it passes over a byte order mark, and refuses a line that is no UTF-8 alone.
    with opener(path, "rb") as file:
        begin = len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0
        file.seek(begin)
        listed = not path.name.endswith(_LINES) and _first(file) == b"["
        file.seek(begin)
        if listed:
            yield from enumerate(json.loads(file.read().decode()), 1)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _parsed(line)


def _first(file: Any) -> bytes:
    """The next byte that is no white space."""
    while (first := file.read(1)).isspace():
        pass
    return first


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
