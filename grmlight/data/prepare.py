"""Raw pairs to a store: read and lint (Rust), render (transformers), encode, share and write (Rust)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from grmlight._data_rs import EngineError, Pairs, Store, StoreWriter, read_pairs
from grmlight.data.files import cache_directory
from grmlight.data.options import PrepareOptions
from grmlight.data.render import Renderer
from grmlight.data.source import as_json_lines, fingerprint
from grmlight.data.tokenizer import load_tokenizer

_CHUNK = 1000


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A store and what its preparation found.

    Attributes:
        source: what was prepared.
        store: the open store.
        directory: its folder.
        report: rows, used, skipped, refused {reason: [row]}, noted {finding: [row]}, and token counts.
        fingerprint: of the source's content, see `grmlight.data.source.fingerprint`.
    """

    source: str
    store: Store
    directory: Path
    report: dict[str, Any]
    fingerprint: str


def prepare(source: str, tokenizer: str, options: PrepareOptions, directory: Path | None = None) -> Prepared:
    """Prepare a source, or open the store that an equal preparation wrote before.

    Args:
        source: see `grmlight.data.source`.
        tokenizer: see `grmlight.data.tokenizer.load_tokenizer`.
        options: how pairs become tokens.
        directory: where the store goes; None for a place in the cache that its content names.

    Errors: ValueError in one line that names file, row or option and says what to do.
    """
    loaded = load_tokenizer(tokenizer, options.chat_template)
    content = fingerprint(source)
    identity = _identity(content, loaded, options)
    target = directory or cache_directory() / "stores" / identity[:32]
    if not (target / "manifest.json").exists():
        _write(source, loaded, options, target, identity)
    store = Store(str(target))
    manifest = json.loads(store.manifest)
    if manifest.get("identity") != identity:
        raise ValueError(
            f"{target}: holds a store of other data, tokenizer or options; remove it or name another folder"
        )
    return Prepared(source, store, target, manifest["report"], content)


def _identity(content: str, tokenizer: Any, options: PrepareOptions) -> str:
    described = {
        "source": content,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "template": tokenizer.chat_template,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "version": version("grmlight"),
        "options": dataclasses.asdict(options) | {"chat_template": None},
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _write(source: str, tokenizer: Any, options: PrepareOptions, target: Path, identity: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with as_json_lines(source, target.parent) as path:
        pairs = read_pairs(path, _read_options(source, options))
    renderer = Renderer(tokenizer, options.text_rows, options.paper_mask)
    last = len(pairs) if options.limit is None else min(options.offset + options.limit, len(pairs))
    groups = range(min(options.offset, last), last)

    def encoded_with(engine: str) -> StoreWriter:
        write_options = _write_options(renderer, options) | {"engine": engine}
        writer = StoreWriter(str(target), tokenizer.backend_tokenizer.to_str(), write_options)
        _append_all(writer, pairs, renderer, groups, source)
        return writer

    try:
        writer = encoded_with("auto")
    except EngineError as error:
        warnings.warn(f"{source}: {error}; this is done now, from the beginning", stacklevel=2)
        writer = encoded_with("reference")
    report = json.loads(
        writer.finish(
            {"identity": identity, "source": source, "tokenizer": tokenizer.name_or_path}
            | {"options": json.dumps(dataclasses.asdict(options))}
        )
    )
    if report["used"] == 0:
        shutil.rmtree(target)
        raise ValueError(f"{source}: {why_nothing(report)}")


def why_nothing(report: dict[str, Any]) -> str:
    """Why no row of a source is left, given its report."""
    if report["rows"] == 0:
        return "is empty; give JSON lines, one object a line"
    refused = ", ".join(f"{len(rows)} {reason.replace('_', ' ')}" for reason, rows in report["refused"].items())
    if not refused:
        return f"stride, offset and limit leave none of its {report['rows']} rows; change them"
    advice = "; give JSON lines, one object a line" if "invalid_json" in report["refused"] else ""
    return f"none of its {report['rows']} rows can be used (refused: {refused}){advice}"


def _append_all(writer: StoreWriter, pairs: Pairs, renderer: Renderer, groups: range, source: str) -> None:
    with tqdm(total=len(groups), desc=f"preparing {Path(source).name}", unit=" pairs", delay=2) as bar:
        # Without any group the writer still hears of the rows, and why they are not used.
        for start in groups[::_CHUNK] or [groups.start]:
            stop = min(start + _CHUNK, groups.stop)
            texts, boundaries = [], []
            for index in range(start, stop):
                rendering = renderer.render(*pairs.group(index))
                texts.append(rendering if isinstance(rendering, str) else rendering.texts)
                boundaries.append([] if isinstance(rendering, str) else rendering.boundaries)
            writer.append(pairs, start, texts, boundaries)
            bar.update(stop - start)


def _read_options(source: str, options: PrepareOptions) -> dict[str, Any]:
    names = ("stride", "flip", "flip_seed", "paper_text", "on_bad_row", "on_duplicate", "on_contradiction", "on_tie")
    return {name: getattr(options, name) for name in names} | {"name": source}


def _write_options(renderer: Renderer, options: PrepareOptions) -> dict[str, Any]:
    plain = not renderer.wrap_text
    values = {
        "max_length": options.max_length,
        "on_overlong": options.on_overlong,
        "on_bad_row": options.on_bad_row,
        "add_special_tokens": plain or options.paper_text,
        "append_token": renderer.tokenizer.eos_token_id if plain else None,
    }
    return {name: value for name, value in values.items() if value is not None}
