"""VllmSampler: answers drawn by vLLM, an extra (`pip install grmlight[vllm]`), from a policy in a folder.

The weights are those that lie there: a policy in training is sampled by `grmlight.policy.huggingface`.
Prompts go in and answers come out as tokens, so text is read and written as everywhere else here.

Source: vllm.SamplingParams and vllm.outputs.CompletionOutput of vLLM 0.15. A token to stop at is part of `token_ids`;
"raw" log-probs are those before temperature and truncation.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from transformers import AutoConfig, GenerationConfig

from grmlight.data.options import PrepareOptions
from grmlight.data.tokenizer import load_tokenizer
from grmlight.policy.draw import uniforms
from grmlight.policy.huggingface import end_tokens, locate, positions
from grmlight.policy.reader import PromptReader
from grmlight.policy.rollouts import Answer, PromptText, Rollout, Rollouts, checked
from grmlight.policy.sampler import SamplingOptions

MISSING = "vLLM is not installed; pip install 'grmlight[vllm]', or name the policy without vllm:"


class VllmSampler:
    """Draws answers with a vLLM engine.

    Args:
        engine: a `vllm.LLM`.
        reader: reads prompts for the policy's tokenizer.
        tokenizer: that tokenizer.
        ends: tokens that end an answer.
    """

    name = "vllm"

    def __init__(self, engine: Any, reader: PromptReader, tokenizer: Any, ends: Collection[int]) -> None:
        self._engine, self._reader, self._tokenizer, self._ends = engine, reader, tokenizer, ends

    def refused(self, prompts: Sequence[PromptText], options: SamplingOptions) -> dict[int, str]:
        """Prompts that `generate` would refuse, by their place, and why."""
        return self._reader.refused(prompts, options.max_new_tokens)

    def generate(
        self, prompts: Sequence[PromptText], options: SamplingOptions, seed: int, numbers: Sequence[int] | None = None
    ) -> Rollouts:
        """See `Sampler`. vLLM promises equal answers only on equal machines and batches.

        Errors: ValueError names the prompts that cannot be read or were not answered.
        """
        from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]

        began = time.perf_counter()
        token_ids = self._reader.read(prompts, options.max_new_tokens)
        places = range(len(prompts)) if numbers is None else numbers
        outputs = self._engine.generate(
            [{"prompt_token_ids": tokens.tolist()} for tokens in token_ids],
            [SamplingParams(**parameters(options, self._ends, seed, number)) for number in places],
        )
        groups = tuple(
            Rollout(prompt, tokens, answers(self._tokenizer, output.outputs))
            for prompt, tokens, output in zip(prompts, token_ids, outputs, strict=True)
        )
        return checked(Rollouts(groups, self.name, time.perf_counter() - began), options.samples)


def open_vllm(name: str) -> VllmSampler:
    """The sampler of a model folder, a run directory or a hub name.

    Errors: ValueError in one line if vLLM is missing or cannot load the model.
    """
    try:
        from vllm import LLM  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise ValueError(MISSING) from error
    folder, options = locate(name)
    tokenizer = load_tokenizer(folder, options.chat_template)
    reader, ends = reader_of(folder, tokenizer, options)
    try:
        # Its own default, said because answers' log-probs depend on it.
        engine = LLM(model=folder, tokenizer=folder, logprobs_mode="raw_logprobs", trust_remote_code=False)
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"vLLM cannot load {name!r} ({' '.join(str(error).split())})") from error
    return VllmSampler(engine, reader, tokenizer, ends)


def reader_of(folder: str, tokenizer: Any, options: PrepareOptions) -> tuple[PromptReader, frozenset[int]]:
    """What reads prompts for a policy whose weights are not here, and the tokens that end its answers."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    reader = PromptReader(tokenizer, options, positions(config))
    try:
        generation = GenerationConfig.from_pretrained(folder)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    return reader, reader.ends | end_tokens(generation)


def parameters(options: SamplingOptions, ends: Collection[int], seed: int, number: int) -> dict[str, Any]:
    """The arguments of `vllm.SamplingParams` for one prompt: a seed of its own, so that its neighbors do not matter."""
    drawn = uniforms(seed, np.array([number]), np.zeros(1, np.int64), 0)[0]
    return {
        "n": options.samples,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "max_tokens": options.max_new_tokens,
        "seed": int(drawn * 2**48) % 2**31,
        "stop_token_ids": sorted(ends),
        # The drawn token's alone.
        "logprobs": 0,
        "detokenize": False,
    }


def answers(tokenizer: Any, completions: Sequence[Any]) -> tuple[Answer, ...]:
    """What vLLM's completions of a prompt say, in the order of their numbers."""
    found = []
    for each in sorted(completions, key=lambda completion: completion.index):
        tokens = np.array(list(each.token_ids), np.int64)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        found.append(Answer(tokens, text, each.finish_reason == "stop", _logps(tokens, each.logprobs)))
    return tuple(found)


def _logps(tokens: np.ndarray, found: Sequence[dict[int, Any]] | None) -> np.ndarray | None:
    if found is None:
        return None
    return np.array([each[token].logprob for token, each in zip(tokens.tolist(), found, strict=True)], np.float32)
