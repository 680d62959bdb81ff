"""Names of models and tokenizers: a hub name, a folder, or a folder inside an installed package."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

PACKAGE = "package:"


def resolve(name: str, what: str) -> str:
    """A folder for `package:MODULE/PATH` and for paths, and anything else unchanged: a hub name.

    Args:
        name: as the user gave it.
        what: what it names, for messages.

    Errors: ValueError if it is a path, and nothing is there.
    """
    if name.startswith(PACKAGE):
        module, _, path = name.removeprefix(PACKAGE).partition("/")
        try:
            directory = Path(str(importlib.resources.files(module).joinpath(path)))
        except ModuleNotFoundError as error:
            raise ValueError(f"{what} {name!r}: there is no package {module!r}; check the name") from error
    else:
        directory = Path(name).expanduser()
        if not directory.exists() and name.count("/") <= 1 and not name.startswith((".", "~", "/")):
            return name
    if not directory.is_dir():
        raise ValueError(f"{what} {name!r}: there is no directory {directory}; check the path")
    return str(directory)
