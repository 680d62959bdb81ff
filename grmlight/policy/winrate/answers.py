"""What policies answered to a list of prompts: sampled here, or read from a file of rows with `prompt` and `response`.

Notable decisions:

- Sampled answers go to a pool (`grmlight.policy.best_of_n.pool`), which goes on after a kill, and from there to a file
  of rows that may be named in a policy's place.
- A prompt without an answer is counted and named; one whose answers are of other prompts altogether is an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grmlight.data.files import write_whole
from grmlight.policy.best_of_n.fill import fill
from grmlight.policy.best_of_n.identity import policy_identity, prompts_identity
from grmlight.policy.best_of_n.pool import Pool, PoolAnswer
from grmlight.policy.rollouts import PromptText
from grmlight.policy.sampler import SamplingOptions, open_sampler


@dataclasses.dataclass(frozen=True)
class Answers:
    """A policy's answers.

    Attributes:
        label: what the policy is called.
        answers: for each prompt those to it; none where there are none.
        missing: prompts without any, by their place, and why.
        unused: rows of a file whose prompt was not asked for.
        sampler: what sampled them; empty for a file and for answers that were there already.
        seconds: spent sampling.
        file: where they can be read as rows.
    """

    label: str
    answers: list[list[PoolAnswer]]
    missing: dict[int, str]
    unused: int
    sampler: str
    seconds: float
    file: Path

    def digest(self) -> str:
        """Tells these answers from any others, whatever the file around them."""
        return hashlib.sha256(json.dumps(self.answers).encode()).hexdigest()


def prompt_key(prompt: PromptText | list[Any]) -> str:
    """The same for the same prompt: text is a single user's turn."""
    if isinstance(prompt, str):
        prompt = ({"role": "user", "content": prompt},)
    return json.dumps([[message["role"], message["content"]] for message in prompt])


def read_answers(label: str, path: Path, prompts: Sequence[PromptText]) -> Answers:
    """Answers of a file of JSON lines with `prompt` (text or messages), `response`, and perhaps `ended` and `tokens`.

    Several rows of a prompt are several answers, in their order.

    Errors: ValueError names the line that is no such row; or says that no row answers any of the prompts.
    """
    places = {prompt_key(prompt): place for place, prompt in enumerate(prompts)}
    answers: list[list[PoolAnswer]] = [[] for _ in prompts]
    unused = 0
    for key, answer in _rows(path):
        if key in places:
            answers[places[key]].append(answer)
        else:
            unused += 1
    if not any(answers):
        raise ValueError(
            f"{path}: none of its {unused} rows answers any of the {len(prompts)} prompts; give the prompts that its "
            "answers are to"
        )
    missing = {place: "no row in the file" for place, found in enumerate(answers) if not found}
    return Answers(label, answers, missing, unused, "", 0.0, path)


def _rows(path: Path) -> Iterator[tuple[str, PoolAnswer]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row["response"], str):
                    raise TypeError("response is no text")  # noqa: TRY301
                answer = PoolAnswer(row["response"], int(row.get("tokens") or 0), bool(row.get("ended", True)))
                key = prompt_key(row["prompt"])
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path}: line {number} is no answer ({type(error).__name__}: {error}); it needs `prompt` and "
                    "`response`"
                ) from error
            yield key, answer


def sampled_answers(
    label: str, policy: str, prompts: Sequence[PromptText], options: SamplingOptions, seed: int, out: Path
) -> Answers:
    """A policy's answers: those that lie in `out` already, and what is lacking.

    Errors: ValueError in one line for what is no policy; what was sampled stays.
    """
    drawn = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k")}
    identity: dict[str, Any] = {"policy": policy_identity(policy), "prompts": prompts_identity(prompts), "seed": seed}
    identity |= drawn
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    name = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', label).strip('_')[-60:]}-{digest}"
    pool = Pool(out / f"pool-{name}.jsonl", identity, len(prompts))
    filled = fill(pool, prompts, options, seed, lambda: open_sampler(policy))
    missing = dict(pool.refused or {})
    answers = [pool.answers(place, options.samples) for place in range(len(prompts))]
    file = out / f"answers-{name}.jsonl"
    rows = (
        {"prompt": prompt, "response": each.text, "tokens": each.tokens, "ended": each.ended}
        for prompt, found in zip(prompts, answers, strict=True)
        for each in found
    )
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
    return Answers(label, answers, missing, 0, filled.sampler, filled.seconds, file)
