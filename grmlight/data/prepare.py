"""Raw pairs to a store: read and lint (Rust), render (transformers), encode, share and write (Rust)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from grmlight._data_rs import BrokenPlanError, EngineError, Preparation, Store
from grmlight.data.files import cache_directory
from grmlight.data.options import PrepareOptions
from grmlight.data.render import Renderer
from grmlight.data.source import fingerprint, is_gzip, pair_source
from grmlight.data.tokenizer import load_tokenizer

_POLL = 0.2
"""Seconds between two looks at a store that another process prepares."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A store and what its preparation found.

    Attributes:
        source: what was prepared.
        store: the open store.
        directory: its folder.
        report: rows, used, skipped, refused {reason: [row]}, noted {finding: [row]}, and token counts.
        fingerprint: of the source's content, see `grmlight.data.source.fingerprint`.
        rows: rows that were prepared for it here; 0 where the store was there or another process prepared it.
    """

    source: str
    store: Store
    directory: Path
    report: dict[str, Any]
    fingerprint: str
    rows: int = 0


def prepare(source: str, tokenizer: str, options: PrepareOptions, directory: Path | None = None) -> Prepared:
    """Prepare a source, or open the store that an equal preparation wrote before.

    An interrupted preparation goes on where it was. While another process prepares the same store, this one waits.

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
    rows = _write(source, loaded, options, target, identity)
    store = Store(str(target))
    manifest = json.loads(store.manifest)
    if manifest.get("identity") != identity:
        raise ValueError(
            f"{target}: holds a store of other data, tokenizer or options; remove it or name another folder"
        )
    return Prepared(source, store, target, manifest["report"], content, rows)


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


def _write(source: str, tokenizer: Any, options: PrepareOptions, target: Path, identity: str) -> int:
    """Write the store, or wait for the process that does. The rows that were prepared here."""
    renderer = Renderer(tokenizer, options.text_rows, options.paper_mask)
    settings = _settings(source, renderer, options)
    text = tokenizer.backend_tokenizer.to_str()
    said = False
    while not (target / "manifest.json").exists():
        preparation = Preparation.begin(lambda: pair_source(source), target, identity, text, settings)
        if preparation is not None:
            try:
                return _finish(preparation, renderer, source, _manifest(source, tokenizer, options, identity))
            except (BrokenPlanError, EngineError) as error:
                print(f"{source}: {error}; beginning anew, the slow way", file=sys.stderr, flush=True)
                settings["careful"] = True
                continue
        if not said and not (target / "manifest.json").exists():
            print(f"{target}: another process prepares this store; waiting for it", file=sys.stderr, flush=True)
            said = True
        time.sleep(_POLL)
    return 0


def _finish(preparation: Preparation, renderer: Renderer, source: str, manifest: dict[str, Any]) -> int:
    """Prepare what is left. Data that cannot be used leaves nothing; after anything else one can go on from here."""

    def render(prompt: Any, responses: list[Any]) -> tuple[list[str], list[int]] | str:
        rendering = renderer.render(prompt, responses)
        return rendering if isinstance(rendering, str) else (rendering.texts, rendering.boundaries)

    try:
        before, _, _ = preparation.progress
        with _bar(source, preparation) as show:
            while preparation.advance(render):
                show(*preparation.progress)
        rows, *_ = preparation.progress
        _check_used(source, json.loads(preparation.report()))
        if why := preparation.left:
            print(f"{source}: rendered by transformers where the template needs it ({why})", file=sys.stderr)
        preparation.finish(manifest)
    except ValueError:
        preparation.discard()
        raise
    finally:
        preparation.close()
    return rows - before


@contextlib.contextmanager
def _bar(source: str, preparation: Preparation) -> Iterator[Callable[[int, int, int], None]]:
    """A bar that is shown rows, pairs and place: by bytes for lines, by rows for tables."""
    path = Path(source)
    lines = path.is_file() and path.suffix != ".parquet"
    total = path.stat().st_size if lines and not is_gzip(path) else None
    unit = "B" if lines else " rows"
    rows, _, place = preparation.progress
    if preparation.resumed:
        print(f"{source}: going on at row {rows + 1} of an interrupted preparation", file=sys.stderr, flush=True)
    with tqdm(total=total, initial=place, desc=f"preparing {path.name}", delay=2, unit=unit, unit_scale=lines) as bar:

        def show(rows: int, used: int, place: int) -> None:
            bar.set_postfix(rows=rows, pairs=used, refresh=False)
            bar.update(place - bar.n)

        yield show


def _check_used(source: str, report: dict[str, Any]) -> None:
    if report["used"] == 0:
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


def _settings(source: str, renderer: Renderer, options: PrepareOptions) -> dict[str, Any]:
    names = ("stride", "flip", "flip_seed", "paper_text", "on_bad_row", "on_duplicate", "on_contradiction", "on_tie")
    plain = not renderer.wrap_text
    write = {
        "max_length": options.max_length,
        "on_overlong": options.on_overlong,
        "on_bad_row": options.on_bad_row,
        "add_special_tokens": plain or options.paper_text,
        "append_token": renderer.tokenizer.eos_token_id if plain else None,
    }
    return {
        "read": {name: getattr(options, name) for name in names} | {"name": source},
        "write": {name: value for name, value in write.items() if value is not None},
        "chat": _chat(renderer, options),
        "offset": options.offset,
        "limit": options.limit,
    }


def _chat(renderer: Renderer, options: PrepareOptions) -> dict[str, Any] | None:
    """What the extension renders with; nothing where a tokenizer has several templates, which are transformers' own."""
    tokenizer = renderer.tokenizer
    if not isinstance(tokenizer.chat_template, str | None):
        return None
    return {
        "template": tokenizer.chat_template,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "options": {
            "text_rows": options.text_rows,
            "paper_mask": options.paper_mask,
            "name": tokenizer.name_or_path or "this tokenizer",
        },
    }


def _manifest(source: str, tokenizer: Any, options: PrepareOptions, identity: str) -> dict[str, Any]:
    template = tokenizer.chat_template
    return {
        "identity": identity,
        "source": source,
        "tokenizer": tokenizer.name_or_path,
        "template_sha256": hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else None,
        "options": json.dumps(dataclasses.asdict(options)),
    }
