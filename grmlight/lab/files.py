"""A world's files: its LM and its pairs, shipped for seed 0 and built once into a cache for any other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from grmlight.data.files import cache_directory, remove, temporary_sibling
from grmlight.lab.gold import Gold
from grmlight.lab.world import TESTS, TRAIN, World

SHIPPED_SEED = 0
ASSETS = Path(__file__).parent / "assets"
MAKERS = ("words", "world", "gold", "author", "corpus", "tokenizer", "pretrain", "sample", "pairs", "build")


@dataclasses.dataclass(frozen=True)
class WorldFiles:
    """Where a world's files are.

    Attributes:
        seed: the world.
        lm: Hugging Face folder of the pretrained LM, with its tokenizer.
        tokenizer: the folder that the tokenizer is read from.
        train: training pairs (JSON lines, gzip-compressed).
        tests: test pairs by name: id, ood_topic, ood_template, ood_all, good, hack.
        gold: the world's gold reward.
    """

    seed: int
    lm: Path
    tokenizer: Path
    train: Path
    tests: dict[str, Path]
    gold: Gold

    @classmethod
    def open(cls, directory: Path) -> WorldFiles:
        """The files of a world that `build_world` wrote. ValueError names what is missing."""
        try:
            found = json.loads((directory / "world.json").read_text())
        except FileNotFoundError as error:
            raise ValueError(f"{directory} holds no world.json; build it with python -m grmlight.lab.build") from error
        pairs = {name: directory / "pairs" / f"{name}.jsonl.gz" for name in (TRAIN, *TESTS)}
        gold = Gold(World(found["seed"]), found["gold_mean"], found["gold_deviation"])
        train, lm = pairs.pop(TRAIN), directory / "lm"
        return cls(found["seed"], lm, lm, train, pairs, gold)


def world_files(seed: int = SHIPPED_SEED, cache: Path | None = None) -> WorldFiles:
    """The files of a world: the shipped ones for seed 0; for others a folder built once, which takes minutes.

    Args:
        seed: the world.
        cache: where worlds are kept; by default `worlds` in $GRMLIGHT_CACHE, or else in ~/.cache/grmlight.
    """
    if seed == SHIPPED_SEED:
        return WorldFiles.open(ASSETS)
    directory = (cache or cache_directory() / "worlds") / world_key(seed)
    if not directory.exists():
        _build_once(seed, directory)
    return WorldFiles.open(directory)


def world_key(seed: int) -> str:
    """A name that changes with the seed and with the code that makes a world."""
    digest = hashlib.sha256(b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in MAKERS))
    return f"{seed}-{digest.hexdigest()[:12]}"


def _build_once(seed: int, directory: Path) -> None:
    """Build under a temporary name and rename; of two processes that build the same world, one wins."""
    from grmlight.lab.build import build_world

    temporary = temporary_sibling(directory)
    try:
        build_world(seed, temporary)
        temporary.rename(directory)
    except OSError:
        if not directory.exists():
            raise
    finally:
        remove(temporary)
