"""Rollouts on disk from the moment that they are sampled until a checkpoint has learned from them.

Notable decisions:

- A file is written when an iteration's answers are there, and again when they have rewards: a run that dies then goes
  on from its last checkpoint with the answers and rewards that it has paid for.
- It says of which policy, prompts and options its answers are, and is taken for no others.

The format is safetensors: numbers as tensors, texts as JSON in its metadata.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from grmlight.data.files import remove, temporary_sibling
from grmlight.policy.rollouts import Answer, Rollout


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a file holds.

    Attributes:
        rollouts: in the order of the prompts.
        rewards: each reward's value of each answer, in order; none if they were not yet known.
        seconds: how long sampling took.
    """

    rollouts: tuple[Rollout, ...]
    rewards: Mapping[str, Float[Tensor, " N"]]
    seconds: float


class RolloutFiles:
    """The rollouts of a run's iterations.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, iteration: int, key: str, kept: Kept) -> None:
        """Keep an iteration's rollouts, whole or not at all. `key` says what they depend on."""
        path = self._path(iteration)
        temporary = temporary_sibling(path)
        try:
            temporary.write_bytes(_encode(key, kept))
            temporary.replace(path)
        finally:
            remove(temporary)

    def read(self, iteration: int, key: str) -> Kept | None:
        """An iteration's rollouts, if they are there and depend on the same."""
        path = self._path(iteration)
        try:
            with safe_open(path, framework="numpy") as file:
                described: dict[str, Any] = json.loads(file.metadata()["rollouts"])
                if described["key"] != key:
                    return None
                return _decode(described, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    def forget(self, before: int) -> None:
        """Remove the rollouts of iterations that a checkpoint has learned from."""
        for path in self.folder.glob("*.safetensors"):
            if path.stem.isdigit() and int(path.stem) < before:
                remove(path)

    def _path(self, iteration: int) -> Path:
        return self.folder / f"{iteration:06}.safetensors"


def _encode(key: str, kept: Kept) -> bytes:
    answers = [answer for rollout in kept.rollouts for answer in rollout.answers]
    prompts = [rollout.prompt_tokens for rollout in kept.rollouts]
    arrays = {
        "prompt_tokens": _joined(prompts, np.int64),
        "prompt_lengths": np.array([len(each) for each in prompts]),
        "answers": np.array([len(rollout.answers) for rollout in kept.rollouts]),
        "tokens": _joined([answer.tokens for answer in answers], np.int64),
        "lengths": np.array([len(answer.tokens) for answer in answers]),
        "ended": np.array([answer.ended for answer in answers]),
    }
    logps = [answer.logps for answer in answers if answer.logps is not None]
    if len(logps) == len(answers):
        arrays["logps"] = _joined(logps, np.float32)
    arrays |= {f"reward.{name}": values_N.numpy() for name, values_N in kept.rewards.items()}
    described = {
        "key": key,
        "seconds": kept.seconds,
        "prompts": [rollout.prompt for rollout in kept.rollouts],
        "texts": [answer.text for answer in answers],
        "rewards": list(kept.rewards),
    }
    return save(arrays, {"rollouts": json.dumps(described)})


def _decode(described: dict[str, Any], arrays: dict[str, np.ndarray]) -> Kept:
    prompts = _cut(arrays["prompt_tokens"], arrays["prompt_lengths"])
    tokens = _cut(arrays["tokens"], arrays["lengths"])
    logps = _cut(arrays["logps"], arrays["lengths"]) if "logps" in arrays else [None] * len(tokens)
    answers = [
        Answer(ids, text, bool(ended), own)
        for ids, text, ended, own in zip(tokens, described["texts"], arrays["ended"], logps, strict=True)
    ]
    ends = np.cumsum(arrays["answers"]).tolist()
    rollouts = tuple(
        Rollout(prompt if isinstance(prompt, str) else tuple(prompt), ids, tuple(answers[end - count : end]))
        for prompt, ids, count, end in zip(described["prompts"], prompts, arrays["answers"].tolist(), ends, strict=True)
    )
    rewards = {name: torch.from_numpy(arrays[f"reward.{name}"]) for name in described["rewards"]}
    return Kept(rollouts, rewards, described["seconds"])


def _joined(arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)


def _cut(joined: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(joined, np.cumsum(lengths)[:-1]) if len(lengths) else []
