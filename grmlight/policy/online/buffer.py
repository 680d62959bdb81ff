"""Rollouts on disk from the moment that they are sampled until a checkpoint has learned from them.

Notable decisions:

- They are written when an iteration's answers are there, and their rewards when those are: a run that dies then goes on
  from its last checkpoint with what it has paid for.
- A file beside them says of which policy, prompts and options they are, and they are taken for no others.
- Each reward is kept with what gave it (`identity`): another one under the same name is asked again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from grmlight.data.files import remove, write_whole
from grmlight.export import model_folder
from grmlight.policy.best_of_n.identity import reward_identity
from grmlight.policy.rollouts import Rollouts, read_rollouts, write_rollouts


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is kept of an iteration.

    Attributes:
        rollouts: in the order of the prompts.
        rewards: each reward's value of each answer, float64; none if they were not yet known.
    """

    rollouts: Rollouts
    rewards: Mapping[str, Float[Tensor, " N"]]


def identity(source: Any) -> str:
    """What tells a reward from another one of its name.

    Of a class or a function that is its path and its code, of a folder the names, sizes and times of its files.

    Args:
        source: a `RewardLike`.
    """
    spec = getattr(source, "spec", source)
    if not isinstance(spec, str):
        named = spec if hasattr(spec, "__qualname__") else type(spec)
        return f"{named.__module__}.{named.__qualname__}"
    if not Path(spec).is_dir():
        return reward_identity(spec)
    files = sorted(path for path in model_folder(Path(spec)).iterdir() if path.is_file())
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{spec} {hashlib.sha256(json.dumps(stamps).encode()).hexdigest()}"


class RolloutFiles:
    """The rollouts of a run's iterations: ITERATION.jsonl and, for what they depend on and their rewards, .json.

    Args:
        folder: where they are.
        identities: of the rewards, by name.
    """

    def __init__(self, folder: Path, identities: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.identities = dict(identities or {})

    def write(self, iteration: int, key: str, kept: Kept) -> None:
        """Keep an iteration's rollouts; `key` says what they depend on.

        Answers are written once. A reward with values that are not finite is not kept: a mended one is asked again.
        """
        answers, about = self._paths(iteration)
        if not kept.rewards:
            remove(about)
            write_rollouts(answers, kept.rollouts)
        whole = {name: values_N for name, values_N in kept.rewards.items() if values_N.isfinite().all()}
        rewards = {
            name: {"identity": self.identities.get(name, ""), "values": values_N.tolist()}
            for name, values_N in whole.items()
        }
        write_whole(about, json.dumps({"key": key, "rewards": rewards}))

    def read(self, iteration: int, key: str) -> Kept | None:
        """An iteration's rollouts, if they are there and depend on the same."""
        answers, about = self._paths(iteration)
        if not about.exists() or not answers.exists():
            return None
        found: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
        if found["key"] != key:
            return None
        rewards = {
            name: torch.tensor(each["values"], dtype=torch.float64)
            for name, each in found["rewards"].items()
            if each["identity"] == self.identities.get(name, "")
        }
        return Kept(read_rollouts(answers), rewards)

    def forget(self, before: int) -> None:
        """Remove the rollouts of iterations that a checkpoint has learned from."""
        for path in self.folder.glob("*.json*"):
            if path.stem.isdigit() and int(path.stem) < before:
                remove(path)

    def _paths(self, iteration: int) -> tuple[Path, Path]:
        return self.folder / f"{iteration:06}.jsonl", self.folder / f"{iteration:06}.json"
