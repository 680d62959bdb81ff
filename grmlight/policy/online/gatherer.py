"""Gatherer: what OnlineModule learns from: the answers of an iteration, rewarded.

Shape suffixes: P prompts, N answers, L answer tokens.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation.group_scorer import GroupScorer
from grmlight.models import PolicyModel
from grmlight.models.checkpoint import fingerprint
from grmlight.policy.huggingface import HuggingFaceSampler
from grmlight.policy.online.advantages import whiten
from grmlight.policy.online.buffer import RolloutFiles, identity
from grmlight.policy.online.collect import Collector, Prompts
from grmlight.policy.online.experience import Experience
from grmlight.policy.online.learner import Learner
from grmlight.policy.online.options import Shaping
from grmlight.policy.online.scoring import constant, unscored, wordless
from grmlight.policy.rewards import Aggregator, RewardSource, combine
from grmlight.policy.rollouts import Rollout
from grmlight.policy.sampler import Sampler, SamplingOptions
from grmlight.training.seeding import mixed_seed

logger = logging.getLogger("grmlight")

_WATCH = "watch:"
"""Begins the names of watched rewards where both kinds are kept together."""


class Gatherer(Learner):
    """Base of `OnlineModule`: an iteration's answers and their rewards.

    Attributes:
        aggregator, variance_weight: how several rewards make one score.
        sampling: how answers are drawn.
        shaping: what becomes of the score first.
        watched: rewards that are only looked at, by name.
        sampler: what draws the answers; None before training.
    """

    aggregator: Aggregator
    variance_weight: float
    sampling: SamplingOptions
    shaping: Shaping
    watched: dict[str, GroupScorer]
    sampler: Sampler | None
    _sources: list[str | RewardSource]
    _watch_sources: list[str | RewardSource]
    _told: set[str]

    def warn_of_truncation(self) -> None:
        """Ratio and KL are of the whole distribution at temperature 1."""
        plain = SamplingOptions()
        names = [name for name in ("temperature", "top_p", "top_k") if self._sampled(name) != getattr(plain, name)]
        for name in names:
            self._say(
                f"sampling {name}",
                f"sampling.{name} is {self._sampled(name)}: answers are drawn from another distribution than ratio and "
                f"KL are of, which is the policy's own; set it to {getattr(plain, name)} unless that is wanted",
            )

    def _sampled(self, name: str) -> float:
        return getattr(self.sampling, name)

    def make_sampler(self) -> Sampler:
        """Answers drawn from the model in training."""
        assert isinstance(self.model, PolicyModel)
        datamodule: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer = load_tokenizer(datamodule.tokenizer, datamodule.options.chat_template)
        return HuggingFaceSampler(self.model, tokenizer, datamodule.options, progress=False)

    def collect(self, batch: Prompts) -> tuple[Experience, dict[str, Tensor], float]:
        """What this iteration learns from; the watched rewards; the seconds that sampling took."""
        collector = self.collector(self.sampling, self.rollout_files())
        seed = mixed_seed(self.seed, self.iterations, 1)
        kept, seconds = collector.collect(batch, self.iterations, self._key(batch), seed)
        own, watched = self.split_rewards(kept.rewards)
        self._tell(kept.rewards, kept.rollouts.groups)
        logps_L, reference_L, *values = self._forward_all(kept.rollouts.groups)
        named = dict(zip(self.stream_names, values, strict=True)) if values else {}
        scores_N = self._scores(own, kept.rollouts.groups)
        return Experience(kept.rollouts.groups, own, scores_N, logps_L, reference_L, named), watched, seconds

    def collector(self, sampling: SamplingOptions, files: RolloutFiles | None) -> Collector:
        """What draws answers and asks all rewards, those that are watched, too."""
        assert self.sampler is not None
        return Collector(self.sampler, sampling, self._scorers, self._ranks_now, files, self._say)

    @property
    def _scorers(self) -> dict[str, GroupScorer]:
        """All rewards, watched or not, by the names under which they are kept together."""
        return {**self.rewards, **{_WATCH + name: scorer for name, scorer in self.watched.items()}}

    def split_rewards(self, rewards: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Those that are learned from, and those that are watched."""
        own = {name: rewards[name] for name in self.rewards}
        return own, {name: rewards[_WATCH + name] for name in self.watched}

    def _scores(self, rewards: Mapping[str, Tensor], rollouts: tuple[Rollout, ...]) -> Float[Tensor, " N"]:
        """The answers' scores, shaped; NaN where a reward is not finite."""
        scores_N = combine(rewards, self.aggregator, self.variance_weight)
        scores_N = scores_N.where(scores_N.isfinite(), torch.nan)
        if self.shaping.whiten:
            scores_N = whiten(scores_N, scores_N.isfinite())
        if self.shaping.clip is not None:
            scores_N = scores_N.clamp(-self.shaping.clip, self.shaping.clip)
        ended_N = torch.tensor([answer.ended for rollout in rollouts for answer in rollout.answers])
        return scores_N - self.shaping.cut_penalty * (~ended_N).double()

    def _tell(self, rewards: Mapping[str, Tensor], rollouts: tuple[Rollout, ...]) -> None:
        """Say once what is wrong with the answers, and with each reward."""
        self._say("wordless", wordless(rollouts))
        for name, scorer in self._scorers.items():
            self._say(f"unscored {name}", unscored(name, rewards[name], rollouts, scorer))
            self._say(f"constant {name}", constant(name, rewards[name]))

    def check_experience(self, experience: Experience) -> None:
        """Errors: ValueError for what cannot be learned from."""
        where = f"iteration {self.iterations}"
        if not experience.known_N.any():
            finite = [f"{name} {int(values_N.isfinite().sum())}" for name, values_N in experience.rewards.items()]
            raise ValueError(
                f"{where}: none of its {len(experience.known_N)} answers has a finite reward (finite: "
                f"{', '.join(finite)}); look at the reward, and go on from the last checkpoint: the answers are kept "
                "beside it"
            )
        kl_N = experience.kl_N
        limit = math.inf if self.kl.limit is None else self.kl.limit
        if not kl_N.isfinite().all() or kl_N.mean() > limit:
            found = {"not finite": ~kl_N.isfinite(), f"above kl.limit {limit:g}": kl_N.isfinite() & (kl_N > limit)}
            counts = ", ".join(
                f"{int(bad_N.sum())} of {len(kl_N)} answers {what}" for what, bad_N in found.items() if bad_N.any()
            )
            raise ValueError(
                f"{where}: the KL to the reference exploded: {kl_N.mean():.4g} nats an answer, {counts}; lower the "
                "learning rate or raise kl.coefficient, and go on from an earlier checkpoint"
            )

    def _say(self, what: str, text: str) -> None:
        """Say something the first time that it is so."""
        if text and what not in self._told:
            self._told.add(what)
            if self.global_rank == 0:
                logger.warning("iteration %d: %s", self.iterations, text)

    def rollout_files(self) -> RolloutFiles | None:
        """Where rollouts are kept: beside the checkpoints; nowhere if there are none."""
        folder = getattr(self.trainer.checkpoint_callback, "dirpath", None)
        if not folder:
            return None
        return RolloutFiles(Path(folder).parent / "rollouts", self._identities)

    @functools.cached_property
    def _identities(self) -> dict[str, str]:
        """What tells each reward from another one of its name."""
        sources = [*self._sources, *self._watch_sources]
        return {name: identity(source) for name, source in zip(self._scorers, sources, strict=True)}

    def _key(self, batch: Prompts) -> str:
        """What an iteration's answers depend on: policy, prompts, options, seed; the same on every rank."""
        assert isinstance(self.model, PolicyModel)
        learning = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        weights = fingerprint(self.model, [name for name in learning if not self.model.of_critic(name)])
        prompts = sorted(
            (number, prompt)
            for part in self._ranks_now.gather([*zip(batch.numbers, map(repr, batch.prompts), strict=True)])
            for number, prompt in part
        )
        told = [weights, prompts, repr(self.sampling), self.seed, self.iterations]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()
