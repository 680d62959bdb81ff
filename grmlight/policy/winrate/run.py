"""Win rates from end to end: answers, replies, figures, files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from grmlight.data.files import sole_writer, write_json, write_whole
from grmlight.labeling.endpoint import EndpointAsker
from grmlight.policy.best_of_n.identity import prompts_identity
from grmlight.policy.prompts import read_prompts
from grmlight.policy.rollouts import PromptText
from grmlight.policy.sampler import SamplingOptions
from grmlight.policy.winrate.answers import Answers, prompt_key, read_answers, sampled_answers
from grmlight.policy.winrate.figures import Figures, Judged, figures
from grmlight.policy.winrate.journal import Journal
from grmlight.policy.winrate.judges import Asked, PairJudge, Reply, open_judge
from grmlight.policy.winrate.output import Report, Row, as_json, as_markdown


@dataclasses.dataclass(frozen=True)
class Winrate:
    """What shall be compared.

    Attributes:
        policies: each SPEC or LABEL=SPEC, the last one is what the others are compared with. A spec is a model folder,
            a run directory, a hub name, or a file of JSON lines with `prompt` and `response`.
        prompts: a file of prompts.
        judge: a model folder, a run directory, a folder of kind "judge", or the path of a class or function.
        out: the folder of answers, replies and results.
        sampling: how answers are drawn, and how many to a prompt.
        endpoint: a model behind an API as the judge, in the place of `judge`.
        length_ratio: two lengths match if the longer one is at most so many times the shorter one.
        draws: of the bootstrap over prompts.
        seed: of the answers.
    """

    policies: Sequence[str]
    prompts: str
    judge: str
    out: Path
    sampling: SamplingOptions
    endpoint: EndpointAsker | None = None
    length_ratio: float = 1.1
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.policies) < 2:
            raise ValueError("name at least two policies: those to compare, and last the one to compare them with")
        if self.length_ratio < 1 or self.draws < 2:
            raise ValueError(
                f"length_ratio must be at least 1 and draws at least 2, got {self.length_ratio}, {self.draws}"
            )


def run_winrate(job: Winrate) -> Report:
    """Do it; answers and replies that are on the disk already are not asked for again.

    Writes in `out`: `pool-POLICY.jsonl` and `answers-POLICY.jsonl` of sampled policies, `replies-POLICY.jsonl`,
    `winrate.json` and `winrate.md`.

    Errors: ValueError in one line; what was sampled and replied stays.
    """
    named = _named(job.policies)
    judge = open_judge(job.judge, job.endpoint)
    given = read_prompts(job.prompts)
    prompts = list({prompt_key(prompt): prompt for prompt in given}.values())
    if not prompts:
        raise ValueError(f"{job.prompts}: holds no prompt")
    with sole_writer(job.out):
        found = [_answers(job, label, spec, prompts) for label, spec in named.items()]
        *ours, other = found
        rows = [Row(each.label, _compare(job, judge, prompts, each, other), _unpaired(each, other)) for each in ours]
        report = Report(judge.name, other.label, rows, found, len(prompts), len(given) - len(prompts), job.length_ratio)
        write_json(job.out / "winrate.json", as_json(report))
        write_whole(job.out / "winrate.md", as_markdown(report))
    return report


def _named(policies: Sequence[str]) -> dict[str, str]:
    """Specs by label. Errors: ValueError for two of one label."""
    named: dict[str, str] = {}
    for policy in policies:
        label, equals, spec = policy.partition("=")
        if not equals or Path(policy).exists():
            label = spec = policy
        if label in named:
            raise ValueError(f"two policies are called {label!r}; give them labels of their own, as LABEL={spec}")
        named[label] = spec
    return named


def _answers(job: Winrate, label: str, spec: str, prompts: Sequence[PromptText]) -> Answers:
    if Path(spec).is_file():
        return read_answers(label, Path(spec), prompts)
    return sampled_answers(label, spec, prompts, job.sampling, job.seed, job.out)


def _unpaired(ours: Answers, other: Answers) -> int:
    both = [(len(mine), len(theirs)) for mine, theirs in zip(ours.answers, other.answers, strict=True)]
    return sum(abs(mine - theirs) for mine, theirs in both if mine and theirs)


def _compare(job: Winrate, judge: PairJudge, prompts: Sequence[PromptText], ours: Answers, other: Answers) -> Figures:
    """The figures of one policy. Its n-th answer to a prompt meets the other's n-th."""
    pairs = [
        (place, mine, theirs)
        for place in range(len(prompts))
        for mine, theirs in zip(ours.answers[place], other.answers[place], strict=False)
    ]
    if not pairs:
        raise ValueError(f"{ours.label} and {other.label} have no prompt that both answered; look at the files")
    # A judge sees the text, and whether it was cut off; how it was cut into tokens it does not.
    asked = [number for number, (_, mine, theirs) in enumerate(pairs) if mine[::2] != theirs[::2]]
    questions = [
        Asked(prompts[place], *order)
        for place, mine, theirs in (pairs[number] for number in asked)
        for order in ((mine, theirs), (theirs, mine))
    ]
    identity = {
        "judge": judge.identity,
        "prompts": prompts_identity(prompts),
        "answers": [ours.digest(), other.digest()],
    }
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    replies = iter(Journal(job.out / f"replies-{digest}.jsonl", identity).ask(judge, questions))
    told: dict[int, tuple[Reply, Reply]] = {number: (next(replies), next(replies)) for number in asked}
    judged = [
        Judged(place, *told.get(number, ("=", "=")), len(mine.text), len(theirs.text), number in told)
        for number, (place, mine, theirs) in enumerate(pairs)
    ]
    return figures(judged, job.length_ratio, job.draws)
