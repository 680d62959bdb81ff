"""Text of this machine: documentation and sources of what is installed, three quarters prose, one quarter code."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_DOCSTRING = re.compile(r'"""(.{80,}?)"""', re.DOTALL)
_DOC_COMMENT = re.compile(r"(?:^[ \t]*//[/!].*\n)+", re.MULTILINE)
_MARK = re.compile(r"^[ \t]*//[/!] ?", re.MULTILINE)
_DEEPEST = 200_000


def corpus(size: int) -> str:
    """About `size` characters, the same on every run of a machine.

    Errors: ValueError where the machine has less text.
    """
    prose = _take(_prose(), size * 3 // 4)
    code = _take(_code(), size - size * 3 // 4)
    if len(prose) + len(code) < size // 2:
        raise ValueError(f"the installed packages hold only {len(prose) + len(code)} characters of text")
    return prose + code


def _take(texts: Iterator[str], size: int) -> str:
    found, held = [], 0
    for text in texts:
        found.append(text)
        held += len(text)
        if held >= size:
            break
    return "\n\n".join(found)


def _prose() -> Iterator[str]:
    for path in _files(".md", ".rst"):
        yield _read(path)
    for path in _files(".rs"):
        yield from (_MARK.sub("", comment).strip() for comment in _DOC_COMMENT.findall(_read(path)))
    for path in _files(".py"):
        yield from (text.strip() for text in _DOCSTRING.findall(_read(path)))


def _code() -> Iterator[str]:
    # From the back, so that prose has other files as long as there are enough.
    for path in reversed(_files(".py")):
        yield _read(path)


def _files(*suffixes: str) -> list[Path]:
    cargo = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo") / "registry" / "src"
    roots = [Path(sysconfig.get_path("purelib")), cargo]
    return [path for root in roots for path in sorted(root.rglob("*")) if path.suffix in suffixes and path.is_file()]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")[:_DEEPEST].replace("\0", "")
