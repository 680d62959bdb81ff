"""Numbers of a store's responses, computed later than the store and kept in its folder: docs/store-format.md.

Shape suffixes: N responses, G groups, of a whole store.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from grmlight._data_rs import Store
from grmlight.data.files import remove, temporary_sibling

_SCHEMA = "1"


@dataclasses.dataclass(frozen=True)
class ResponseValues:
    """A number for each response of a store.

    Attributes:
        values_N: the numbers, float32, in the store's order.
        first_G: the first response of each group, and at last the number of responses.
    """

    values_N: np.ndarray
    first_G: np.ndarray

    def of(self, groups: np.ndarray) -> np.ndarray:
        """The numbers of these groups' responses, group by group."""
        return self.values_N[responses_of(self.first_G, groups)]


class Sidecar:
    """The file that holds a store's numbers of one kind.

    Args:
        directory: the store's folder.
        store: the open store.
        kind: what the numbers are; begins the file's name.
        depends_on: what they were computed with. Other entries, or another store, make another file.

    Attributes:
        path: the file.
        first_G: see `ResponseValues`.
    """

    def __init__(self, directory: Path, store: Store, kind: str, depends_on: Mapping[str, str]) -> None:
        self.first_G = first_responses(directory)
        identity = {"schema": _SCHEMA, "store": _sha256(store.manifest.encode()), **depends_on}
        self._entries = identity | {"key": _sha256(json.dumps([kind, identity], sort_keys=True).encode())}
        self.path = directory / f"{kind}-{self._entries['key'][:32]}.safetensors"

    def read(self) -> ResponseValues | None:
        """The numbers, or None if there is no such file.

        Errors: ValueError that names the file and what is wrong with it: it is cut off, changed, or another store's.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="numpy") as file:
                entries, values_N = file.metadata() or {}, file.get_tensor("values")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path}: cannot be read ({error})") from error
        if {name: entries.get(name) for name in self._entries} != self._entries:
            raise ValueError(f"{self.path}: was computed for other data, weights or precision")
        if values_N.shape != (self.first_G[-1],) or values_N.dtype != np.float32:
            raise ValueError(f"{self.path}: holds {values_N.size} values, the store has {self.first_G[-1]} responses")
        if entries.get("sha256") != _sha256(values_N.tobytes()):
            raise ValueError(f"{self.path}: was changed: its checksum is not the one it was written with")
        return ResponseValues(values_N, self.first_G)

    def check_writable(self) -> None:
        """Raise the OSError that `write` would raise, before anything is computed."""
        temporary = temporary_sibling(self.path)
        temporary.touch()
        remove(temporary)

    def write(self, values_N: np.ndarray) -> ResponseValues:
        """Write the file, whole or not at all."""
        assert values_N.shape == (self.first_G[-1],)
        assert values_N.dtype == np.float32
        temporary = temporary_sibling(self.path)
        try:
            save_file({"values": values_N}, temporary, self._entries | {"sha256": _sha256(values_N.tobytes())})
            temporary.replace(self.path)
        finally:
            remove(temporary)
        return ResponseValues(values_N, self.first_G)


def first_responses(directory: Path) -> np.ndarray:
    """The first response of each group of a store, and at last the number of responses."""
    segment_G = np.fromfile(directory / "groups.bin", dtype="<u8").reshape(-1, 2)[:, 0].astype(np.int64)
    return segment_G - np.arange(len(segment_G))


def responses_of(first_G: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The responses of these groups, group by group, as indices into the store's responses."""
    sizes = first_G[groups + 1] - first_G[groups]
    ends = np.cumsum(sizes)
    return np.arange(sizes.sum()) + np.repeat(first_G[groups] - ends + sizes, sizes)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
