"""What tells one policy, reward or list of prompts from another: digests of their contents."""

from __future__ import annotations

import hashlib
import inspect
import json
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
    """Of a folder its files; of a class or a function its path and its source.

    Errors: ValueError in one line for what is no reward; models are not loaded for that.
    """
    if Path(spec).exists():
        return fingerprint(str(model_folder(Path(spec))))
    reward = open_reward(spec)
    code = reward.function if isinstance(reward, FunctionReward) else type(reward)
    try:
        source = Path(inspect.getfile(code)).read_bytes()
    except (TypeError, OSError):
        # What is built in has no file.
        source = b""
    return f"{spec} {hashlib.sha256(source).hexdigest()}"


def prompts_identity(prompts: Sequence[PromptText]) -> str:
    """Of their texts, whatever the file around them."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
