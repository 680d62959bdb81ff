"""Where pairs come from: anything that can be named becomes what the Rust reader takes.

A source is a path (.jsonl, .jsonl.gz, .json lines, .parquet, a folder of parquet files, a folder written by
`datasets.save_to_disk`), the name of a Hugging Face data set, `NAME[@CONFIG][:SPLIT]`, or the hub's address of parquet
files, `hf://datasets/...`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from grmlight.data.files import temporary_sibling

Entry = TypeVar("Entry", str, bool)

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<config>[^:@]+))?(:(?P<split>.+))?$")


def fingerprint(source: str) -> str:
    """Identify a source's content: the bytes of its files, or a data set's own fingerprint."""
    digest = hashlib.sha256()
    if not Path(source).exists():
        digest.update(_load_hub(source)._fingerprint.encode())
        return digest.hexdigest()
    for path in _files(Path(source)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def pair_source(source: str) -> str | list[str] | pa.RecordBatchReader:
    """What `read_pairs` takes for a source: a path of JSON lines, paths of Parquet files, or tables as they are read.

    Errors: ValueError in one line for what cannot be found or is no data set.
    """
    path = Path(source)
    if path.is_file() and path.suffix != ".parquet":
        return str(path)
    if files := _parquet_files(path):
        return list(map(str, files))
    table = _loaded(source)
    parts = table.with_format("arrow").iter(batch_size=1000)
    batches = (batch for part in parts for batch in part.to_batches())
    return pa.RecordBatchReader.from_batches(table.features.arrow_schema, batches)


@contextlib.contextmanager
def as_json_lines(source: str, scratch: Path) -> Iterator[str]:
    """A path of JSON lines (.gz allowed) for a source whose rows are no pairs, or not only.

    Tables are converted into `scratch`, and the copy is removed again.

    Errors: ValueError in one line for what cannot be found or read.
    """
    path = Path(source)
    if path.is_file() and path.suffix != ".parquet":
        yield str(path)
        return
    converted = temporary_sibling(scratch / "source.jsonl")
    try:
        _write_json_lines(_batches(source), converted, source)
        yield str(converted)
    finally:
        converted.unlink(missing_ok=True)


def read_column(source: str, name: str, kind: type[Entry] = str) -> dict[int, Entry]:
    """A column of a source that stores do not keep: its texts by row number, counted as everywhere from 1.

    Args:
        source: see above.
        name: of the column.
        kind: of the values; those of any other type, and empty texts, are left out.

    Errors: ValueError in one line for what cannot be found or read.
    """
    path = Path(source)
    if not path.is_file() or path.suffix == ".parquet":
        rows = itertools.chain.from_iterable(_batches(source))
        return {number: row[name] for number, row in enumerate(rows, 1) if _is(row.get(name), kind)}
    key, found = json.dumps(name), {}
    opener = gzip.open if is_gzip(path) else open
    # A broken line has been refused already; those behind it keep their numbers.
    with opener(path, "rt", encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            # Reading JSON takes long, and most files have no such column.
            if key in line and _is(value := _entry(line, name), kind):
                found[number] = value
    return found


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed, by its first bytes: as the Rust reader tells."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _entry(line: str, name: str) -> Any:
    with contextlib.suppress(ValueError, AttributeError):
        return json.loads(line).get(name)
    return None


def _is(value: Any, kind: type[Any]) -> bool:
    return isinstance(value, kind) and value != ""


def _files(path: Path) -> list[Path]:
    """The files that are the source: of a folder its Parquet files, or else all."""
    if not path.is_dir():
        return [path]
    return _parquet_files(path) or sorted(each for each in path.rglob("*") if each.is_file())


def _batches(source: str) -> Iterator[list[dict[str, Any]]]:
    if files := _parquet_files(Path(source)):
        yield from itertools.chain.from_iterable(map(_parquet_batches, files))
        return
    for batch in _loaded(source).with_format("arrow").iter(batch_size=1000):
        yield batch.to_pylist()


def _parquet_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.parquet"))


def _parquet_batches(file: Path) -> Iterator[list[dict[str, Any]]]:
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1000):
            yield batch.to_pylist()
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as parquet ({error})") from error


def _loaded(source: str) -> Any:
    path = Path(source)
    return _load_disk(path) if path.is_dir() else _load_hub(source)


def _load_disk(path: Path) -> Any:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: holds neither .parquet files nor a data set written by save_to_disk; name a file or such a folder"
        ) from error
    return _one_split(loaded, f"{path}/")


def _load_hub(source: str) -> Any:
    import datasets

    match = _HUB_NAME.fullmatch(source)
    looks_like_a_path = source.startswith((".", "/", "~")) or source.endswith((".jsonl", ".gz", ".json", ".parquet"))
    files = source.startswith("hf://") and source.endswith(".parquet")
    if not files and (match is None or looks_like_a_path):
        raise ValueError(f"{source}: no such file; give a path that exists or a data set NAME[@CONFIG][:SPLIT]")
    try:
        if match is None or files:
            loaded = datasets.load_dataset("parquet", data_files=source, split="train")
        else:
            loaded = datasets.load_dataset(match["name"], match["config"], split=match["split"])
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{source}: no such file, and no data set of that name could be loaded ({reason})") from error
    return _one_split(loaded, f"{source}:")


def _one_split(loaded: Any, prefix: str) -> Any:
    import datasets

    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) > 1:
            splits = list(map(str, loaded))
            raise ValueError(f"{prefix[:-1]}: has splits {', '.join(splits)}; name one, as in {prefix}{splits[0]}")
        return next(iter(loaded.values()))
    return loaded


def _write_json_lines(batches: Iterator[list[dict[str, Any]]], path: Path, source: str) -> None:
    with path.open("w", encoding="utf-8") as file, tqdm(desc=f"reading {source}", unit=" rows", delay=2) as bar:
        for batch in batches:
            file.writelines(json.dumps(row, ensure_ascii=True, default=str) + "\n" for row in batch)
            bar.update(len(batch))
