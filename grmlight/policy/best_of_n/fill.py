"""Sampling into a pool until each prompt has its answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence

from tqdm.auto import tqdm

from grmlight.policy.best_of_n.pool import Pool, PoolAnswer
from grmlight.policy.rollouts import PromptText
from grmlight.policy.sampler import Sampler, SamplingOptions

BLOCK = 256
"""Answers to a prompt in a block, at most. What is drawn depends on it, so it is no option."""


@dataclasses.dataclass(frozen=True)
class Filled:
    """What was added.

    Attributes:
        sampler: what sampled; empty if nothing was missing.
        answers: how many were added.
        seconds: spent sampling.
    """

    sampler: str = ""
    answers: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Call:
    prompts: list[int]
    first: int
    count: int


def fill(
    pool: Pool,
    prompts: Sequence[PromptText],
    options: SamplingOptions,
    seed: int,
    opened: Callable[[], Sampler],
    rows: Sequence[int] | None = None,
) -> Filled:
    """Sample what a pool lacks.

    Args:
        pool: where the answers go.
        prompts: what is answered.
        options: `samples` is how many answers each prompt shall have.
        seed: of the draws.
        opened: gives the sampler; not called if nothing is missing.
        rows: of the prompts, by which errors name them; None counts them.

    Errors: ValueError if no prompt can be sampled from, and for a sampler that does not give what it was asked for.
    """
    rows = range(1, len(prompts) + 1) if rows is None else rows
    sampler = None
    if pool.refused is None:
        sampler = opened()
        pool.refuse(sampler.refused(prompts, options))
    assert pool.refused is not None
    if len(pool.refused) == len(prompts):
        raise ValueError(f"none of the {len(prompts)} prompts can be answered: prompt {rows[0]} {pool.refused[0]}")
    if not any(_calls(pool, options)):
        return Filled()
    sampler = sampler or opened()
    added, seconds, wanted = 0, 0.0, options.samples * (len(prompts) - len(pool.refused))
    with tqdm(desc="sampling", total=wanted, initial=int(pool.counts().sum()), unit=" answers", delay=2) as bar:
        for call in list(_calls(pool, options)):
            asked = dataclasses.replace(options, samples=call.count)
            texts = [prompts[place] for place in call.prompts]
            rollouts = sampler.generate(texts, asked, _seed(seed, call.first), call.prompts)
            answers = [
                [PoolAnswer(each.text, len(each.tokens), each.ended) for each in g.answers] for g in rollouts.groups
            ]
            if [len(each) for each in answers] != [call.count] * len(texts):
                raise ValueError(
                    f"sampler {sampler.name} gave {sum(map(len, answers))} of {call.count * len(texts)} answers to "
                    f"prompts {rows[call.prompts[0]]} to {rows[call.prompts[-1]]}; the pool keeps all earlier ones"
                )
            pool.append(call.prompts, call.first, answers, sampler.name)
            added, seconds = added + call.count * len(texts), seconds + rollouts.seconds
            bar.update(call.count * len(texts))
    return Filled(sampler.name, added, seconds)


def _calls(pool: Pool, options: SamplingOptions) -> Iterator[_Call]:
    """What is to be asked for, prompt by prompt, so that whole prompts are there first."""
    have_P = pool.counts().tolist()
    usable = [place for place in range(pool.prompts) if place not in (pool.refused or {})]
    together = max(1, max(options.rows_per_batch, BLOCK) // min(options.samples, BLOCK))
    for start in range(0, len(usable), together):
        chunk = usable[start : start + together]
        for begin in range(0, options.samples, BLOCK):
            end = min(begin + BLOCK, options.samples)
            # Prompts that an earlier, smaller pool left at different places go separately.
            for first in sorted({max(have_P[place], begin) for place in chunk if have_P[place] < end}):
                members = [place for place in chunk if max(have_P[place], begin) == first]
                yield _Call(members, first, end - first)


def _seed(seed: int, first: int) -> int:
    digest = hashlib.sha256(f"best of n {seed} {first}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
