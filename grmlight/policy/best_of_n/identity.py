"""What tells one policy, reward or list of prompts from another: digests of their contents."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from grmlight.data.source import fingerprint
from grmlight.export import model_folder
from grmlight.policy.huggingface import locate
from grmlight.policy.rewards import FunctionReward, open_reward
from grmlight.policy.rollouts import PromptText
from grmlight.policy.sampler import VLLM


def policy_identity(name: str) -> str:
    """Of a folder its files, of a hub name the name; and what samples.

    Errors: ValueError for a path without a policy.
    """
    engine = VLLM if name.startswith(VLLM) else ""
    folder, _ = locate(name.removeprefix(VLLM))
    return engine + (fingerprint(folder) if Path(folder).is_dir() else folder)


def reward_identity(spec: str) -> str:
    """Of a folder its files; of a class or a function its path, and what it says itself as `identity`.

    Without that, the Python files of the packages that its path and its definition are in; a module in no package is
    one file. What these import from elsewhere, and the data that they read, is not in it.

    Errors: ValueError in one line for what is no reward; models are not loaded for that.
    """
    if Path(spec).exists():
        return fingerprint(str(model_folder(Path(spec))))
    reward = open_reward(spec)
    code = reward.function if isinstance(reward, FunctionReward) else reward
    declared = getattr(code, "identity", None)
    if declared is None:
        defined = code if isinstance(reward, FunctionReward) else type(code)
        return f"{spec} {_sources({spec.rpartition('.')[0], str(getattr(defined, '__module__', ''))})}"
    if not isinstance(declared, str):
        what = f"reward {spec!r}: its `identity` is {declared!r}; make it a text that changes whenever a score does"
        raise ValueError(what)  # noqa: TRY004
    return f"{spec} {declared}"


def _sources(modules: set[str]) -> str:
    """A digest of the Python files of some modules' packages; what is built in has none."""
    digest = hashlib.sha256()
    for name in sorted(modules):
        module = sys.modules.get(name)
        own = getattr(module, "__file__", None)
        if module is None or own is None:
            continue
        folder = Path(own).parent
        files = sorted(folder.rglob("*.py")) if module.__package__ else [Path(own)]
        for path in files:
            digest.update(f"{name} {path.relative_to(folder)} ".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def prompts_identity(prompts: Sequence[PromptText]) -> str:
    """Of their texts, whatever the file around them."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
