"""OnlineModule: PPO, RLOO and GRPO as one LightningModule.

Notable decisions:

- A batch of the loader is one iteration: its prompts are answered, the answers are rewarded, and the policy takes
  `epochs * minibatches` optimizer steps on them. `global_step` counts optimizer steps.
- All ranks hold all rollouts of an iteration; forwards are what is shared out. So losses do not depend on the ranks.
- What an iteration cannot learn from (no reward is finite, a KL that exploded, a reward that failed) ends the run, but
  only after a checkpoint of the step before it; the answers that were paid for stay beside it.
- One optimizer, manual optimization: policy and critic learn from one loss.

Shape suffixes: P prompts, N answers, L answer tokens, K streams of rewards.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from grmlight.data.batch import GroupBatch
from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation.group_scorer import GroupScorer
from grmlight.models import (
    BackboneConfig,
    HeadConfig,
    Outputs,
    Packing,
    PolicyModel,
    shard,
    training_memory,
)
from grmlight.models.checkpoint import fingerprint
from grmlight.models.policy_model import Critic
from grmlight.module import NonFinite, Schedule, default_optimizer
from grmlight.pair_module import check_masters
from grmlight.policy.online.advantages import Advantage, whiten
from grmlight.policy.online.buffer import RolloutFiles, identity
from grmlight.policy.online.collect import Collector, Prompts
from grmlight.policy.online.controllers import KlController, KlOptions
from grmlight.policy.online.experience import SCORE, Experience
from grmlight.policy.online.figures import Averages, rollout_figures
from grmlight.policy.online.held_out import HeldOut, held_out_values
from grmlight.policy.online.learner import Learner
from grmlight.policy.online.mixing import KL, Mixer
from grmlight.policy.online.options import Shaping, Update
from grmlight.policy.online.scoring import constant, unscored, wordless
from grmlight.policy.online.sharing import Guest
from grmlight.policy.rewards import Aggregator, RewardSource, combine, open_rewards
from grmlight.policy.rollouts import Rollout
from grmlight.policy.sampler import Sampler, SamplingOptions
from grmlight.training.checkpoints import keep_checkpoint
from grmlight.training.description import DESCRIPTION, check_frozen, describe
from grmlight.training.seeding import mixed_seed
from grmlight.training.sharding import check_trainer

logger = logging.getLogger("grmlight")

STATE = "grmlight_online"
"""A checkpoint's entry."""

_WATCH = "watch:"
"""Begins the names of watched rewards where both kinds are kept together."""


class OnlineModule(Learner):
    """A policy that is optimized against rewards on its own answers.

    Args:
        backbone: a hub name, a folder, `package:MODULE/PATH`, or a whole `BackboneConfig`.
        rewards: what the answers are worth: model folders, runs, paths of classes or functions, each with a name of its
            own if wanted; in scripts also what scores groups, and functions of prompt and response.
        advantage: "gae" (PPO, with a critic), "rloo" (leave-one-out baseline) or "grpo" (normalized in the group).
        watch: likewise, but only looked at: a gold reward, say.
        aggregator: how several rewards make one score: "mean", "wco" (minimum), "uwo" (mean minus variance) or "sum".
        variance_weight: lambda of "uwo".
        sampling: how answers are drawn.
        kl: how the policy is held to its reference, which is the model that it begins as.
        update: how it learns from an iteration's answers.
        shaping: what becomes of the score first.
        mixing: instead of an aggregator: each reward has advantages (and a value head) of its own, and this mixes them.
        critic: what the critic reads: "shared", the policy's hidden states, or "apart", adapters or layers of its own.
        value_head: the shape of the critic's heads.
        packing: "auto" packs wherever the model is proven to allow it, "never" pads.
        optimizer: makes the optimizer from the trainable parameters.
        schedule: course of the learning rate after the warm-up.
        warmup_ratio: share of all optimizer steps in which the learning rate rises from 0.
        seed: seed of newly made weights, of dropout, of the answers and of the minibatches.
        on_nonfinite: as in `GroupModule`.

    Attributes:
        rewards, watched: what was opened, by name.
        controller: of the KL coefficient.
        iterations: done so far.
        experience: what the last iteration learned from; None before the first.

    Sources: PPO (arXiv 1707.06347), RLOO (2402.14740), GRPO (2402.03300).
    """

    shown = ("train/loss", "rollout/score", "rollout/kl")

    def __init__(
        self,
        backbone: str | BackboneConfig,
        rewards: list[str | RewardSource],
        advantage: Advantage = "gae",
        watch: list[str | RewardSource] | None = None,
        aggregator: Aggregator = "mean",
        variance_weight: float = 0.5,
        sampling: SamplingOptions | None = None,
        kl: KlOptions | None = None,
        update: Update | None = None,
        shaping: Shaping | None = None,
        mixing: Mixer | None = None,
        critic: Critic = "shared",
        value_head: HeadConfig | None = None,
        packing: Packing = "auto",
        optimizer: OptimizerCallable = default_optimizer,
        schedule: Schedule = "cosine",
        warmup_ratio: float = 0.03,
        seed: int = 0,
        on_nonfinite: NonFinite = "stop",
    ) -> None:
        super().__init__(optimizer, schedule, warmup_ratio, seed, on_nonfinite)
        self.automatic_optimization = False
        self.backbone = BackboneConfig(name=backbone) if isinstance(backbone, str) else backbone
        self.advantage: Advantage = advantage
        self.aggregator: Aggregator = aggregator
        self.variance_weight = variance_weight
        self.sampling, self.kl = sampling or SamplingOptions(samples=4), kl or KlOptions()
        # Beside a KL in the loss, whitened advantages would be of no known scale.
        whitens = advantage == "gae" and self.kl.where == "reward"
        self.update, self.shaping = (update or Update()).of(advantage, whitens), shaping or Shaping()
        self.mixing, self.value_head = mixing, value_head
        self.critic: Critic = critic
        self.packing: Packing = packing
        self._sources, self._watch_sources = list(rewards), list(watch or [])
        self._check_options()
        self.rewards: dict[str, GroupScorer] = {}
        self.watched: dict[str, GroupScorer] = {}
        self._guests: dict[RewardSource, Guest] = {}
        self.controller = KlController(self.kl)
        self.sampler: Sampler | None = None
        self.experience: Experience | None = None
        self.iterations = 0
        self._saved_before = 0
        self._averages = Averages()
        self._held_out: dict[int, HeldOut] = {}
        self._fatal: ValueError | None = None
        self._loops: dict[str, Any] = {}
        self._spent = {"sampling": 0.0, "all": 0.0}
        self._told: set[str] = set()
        self._description: dict[str, Any] | None = None

    def _check_options(self) -> None:
        if self.advantage not in ("gae", "rloo", "grpo"):
            raise ValueError(f"advantage must be 'gae', 'rloo' or 'grpo', got {self.advantage!r}")
        if not self._sources:
            raise ValueError("there is no reward; name at least one in model.init_args.rewards")
        if self.backbone.frozen:
            raise ValueError("backbone.frozen: a policy that is frozen learns nothing; drop it")
        if self.advantage != "gae" and self.sampling.samples < 2:
            raise ValueError(
                f"advantage {self.advantage!r} compares the answers to a prompt; set sampling.samples to 2 or more"
            )
        if self.mixing is not None and self.shaping != Shaping():
            raise ValueError("mixing takes rewards as they are; drop shaping")
        if self.mixing is not None and self.kl.where == "loss":
            raise ValueError(f"mixing takes the KL as the reward {KL!r}; set kl.where to 'reward'")

    def setup(self, stage: str) -> None:
        """Open the rewards.

        Errors: ValueError for two of one name, for one that cannot be opened, and for callbacks that regularize.
        """
        check_trainer(self.trainer)
        check_masters(self.backbone)
        if not self._guests:
            sources = [each for each in (*self._sources, *self._watch_sources) if isinstance(each, RewardSource)]
            self._guests = {each: Guest(each.spec, self.backbone) for each in sources if each.share}
        if self.model is None:
            sets = 2 if self.advantage == "gae" and self.critic == "apart" else 1
            guests = [guest.lora for guest in self._guests.values()]
            memory = training_memory(self.backbone, adapters=sets, guests=guests)
            rank_zero_info(memory.describe(self.trainer.world_size))
        if self._regularizers:
            raise ValueError(
                f"{self._regularizers[0].name}: regularizers are for pairs; OnlineModule has kl and mixing instead"
            )
        if not self.rewards:
            self.rewards = open_rewards(self._sources, self._guests.__getitem__)
            self.watched = open_rewards(self._watch_sources, self._guests.__getitem__)
        if taken := {KL, SCORE} & self.rewards.keys():
            raise ValueError(f"a reward may not be named {taken.pop()!r}; give it another `name`")
        if self.mixing is not None:
            self.mixing.setup(self.stream_names)

    def configure_model(self) -> None:
        """Build the policy once, with its reference and critic; a checkpoint is restored later."""
        if self.model is not None:
            return
        values = len(self.stream_names) if self.advantage == "gae" else 0
        model = PolicyModel(self.backbone, self.seed, True, self.packing, values, self.critic, self.value_head)
        if self.device_mesh is not None:
            dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32
            shard(model, self.device_mesh["data_parallel"], dtype)
        self.model = model

    def preference(self, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, " G"]:
        """There are no pairs."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """As the base, with the steps that the loader's batches make."""
        optimizer = self.optimizer([p for p in self.parameters() if p.requires_grad])
        batches, most = float(self.trainer.estimated_stepping_batches), self.trainer.max_steps
        if self.trainer.max_epochs is not None and self.trainer.max_epochs > 0:
            # Lightning counts a step a batch, and then takes the lower one of both limits.
            batches = self.trainer.num_training_batches * self.trainer.max_epochs
            batches = min(batches * self.steps_per_iteration, most if most >= 0 else math.inf)
        steps = int(batches) if math.isfinite(batches) else 1
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule_factor(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Load the rewards that share the policy's backbone onto it: it is where it stays, and sharded."""
        super().on_fit_start()
        assert isinstance(self.model, PolicyModel)
        for guest in self._guests.values():
            guest.attach(self.model)

    def on_train_start(self) -> None:
        """Go on where the checkpoint left off; make the sampler, if none was given."""
        super().on_train_start()
        self.sampler = self.sampler or self._make_sampler()
        self._loops = self._loops or self._loops_now()
        rank_zero_info(f"answers are sampled by {self.sampler.name}")
        self._warn_of_truncation()

    def on_train_end(self) -> None:
        """As the base; what sampling took, and constraints that are violated, are told of."""
        super().on_train_end()
        if self.sampler is not None and self._spent["all"] > 0:
            rank_zero_info(
                f"sampler {self.sampler.name}: {self._spent['sampling']:.1f} of {self._spent['all']:.1f} s in "
                f"iterations were sampling, {self._spent['sampling'] / self._spent['all']:.0%}"
            )
        if self.mixing is not None:
            self.mixing.finish()

    def _warn_of_truncation(self) -> None:
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

    def _make_sampler(self) -> Sampler:
        """Answers drawn from the model in training."""
        from grmlight.policy.huggingface import HuggingFaceSampler

        assert isinstance(self.model, PolicyModel)
        datamodule: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer = load_tokenizer(datamodule.tokenizer, datamodule.options.chat_template)
        return HuggingFaceSampler(self.model, tokenizer, datamodule.options, progress=False)

    def training_step(  # pyright: ignore[reportIncompatibleMethodOverride] - its batches are prompts
        self, batch: Prompts, batch_idx: int
    ) -> None:
        """One iteration. What it cannot learn from is raised when the step is over: see `on_train_batch_end`."""
        began = time.perf_counter()
        try:
            with self._memory_errors():
                experience, watched, seconds = self._collect(batch)
                self._check(experience)
            told = self._streams(experience)
            mixed = self._update_mixing(experience, told)
        except ValueError as error:
            self._fatal = error
            return
        figures = rollout_figures(experience, watched, told, self.controller.coefficient) | mixed
        self._learn(experience, told)
        self.controller.update(experience.kl_N.mean().item())
        self.experience = experience
        self.iterations += 1
        spent = max(time.perf_counter() - began, 1e-9)
        figures["sampling_share"] = seconds / spent
        self._spent = {"sampling": self._spent["sampling"] + seconds, "all": self._spent["all"] + spent}
        self._averages.add(figures)
        self.trainer.callback_metrics.update({f"rollout/{name}": torch.tensor(each) for name, each in figures.items()})
        self.meter.pause()

    def on_train_batch_end(  # pyright: ignore[reportIncompatibleMethodOverride] - its batches are prompts
        self, outputs: Any, batch: Prompts, batch_idx: int
    ) -> None:
        """At the end of an iteration, log if it is time.

        Errors: ValueError if it could not be learned from; a checkpoint of the step before it is there.
        """
        if self._fatal is not None:
            keep_checkpoint(self.trainer)
            raise self._fatal
        self._loops = self._loops_now()
        self.meter.clock.start()
        if self.logs_at(self.global_step):
            self._log_training()

    def logs_at(self, step: int) -> bool:
        """Whether a line is due after the iteration that ended with this step."""
        every: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] - set in its __init__
        return bool(every) and step % every < self.steps_per_iteration

    def finish_figures(self, figures: dict[str, float]) -> dict[str, float]:
        """Add those of the rollouts; pairs there are none."""
        figures.pop("speed/pairs_per_second", None)
        return figures | {f"rollout/{name}": value for name, value in self._averages.take().items()}

    def _collect(self, batch: Prompts) -> tuple[Experience, dict[str, Tensor], float]:
        """What this iteration learns from; the watched rewards; the seconds that sampling took."""
        collector = self._collector(self.sampling, self._files())
        seed = mixed_seed(self.seed, self.iterations, 1)
        kept, seconds = collector.collect(batch, self.iterations, self._key(batch), seed)
        own, watched = self._split(kept.rewards)
        self._tell(own, kept.rollouts.groups)
        logps_L, reference_L, *values = self._forward_all(kept.rollouts.groups)
        named = dict(zip(self.stream_names, values, strict=True)) if values else {}
        scores_N = self._scores(own, kept.rollouts.groups)
        return Experience(kept.rollouts.groups, own, scores_N, logps_L, reference_L, named), watched, seconds

    def _collector(self, sampling: SamplingOptions, files: RolloutFiles | None) -> Collector:
        assert self.sampler is not None
        wanted = {**self.rewards, **{_WATCH + name: scorer for name, scorer in self.watched.items()}}
        return Collector(self.sampler, sampling, wanted, self._ranks_now, files, self._say)

    def _split(self, rewards: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Those that are learned from, and those that are watched."""
        own = {name: rewards[name] for name in self.rewards}
        return own, {name: rewards[_WATCH + name] for name in self.watched}

    def validation_step(  # pyright: ignore[reportIncompatibleMethodOverride] - its batches are prompts
        self, batch: Prompts, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """One answer to each held-out prompt, drawn alike at every validation.

        Errors: ValueError as in an iteration, but for rewards that are not finite: they are counted.
        """
        self.sampler = self.sampler or self._make_sampler()
        collector = self._collector(dataclasses.replace(self.sampling, samples=1), None)
        # What a sharded model gathers within inference mode could not be trained with afterwards.
        with self._memory_errors(), torch.inference_mode(False), torch.no_grad():
            kept, _ = collector.collect(batch, self.iterations, "", mixed_seed(self.seed, batch_idx, 0))
            own, watched = self._split(kept.rewards)
            logps_L, reference_L, *_ = self._forward_all(kept.rollouts.groups)
        scores_N = combine(own, self.aggregator, self.variance_weight)
        experience = Experience(kept.rollouts.groups, own, scores_N, logps_L, reference_L, {})
        values = held_out_values(experience, watched, self.mixing is None)
        self._held_out.setdefault(dataloader_idx, HeldOut()).add(values)

    def on_validation_epoch_end(self) -> None:
        """Log the means over each set of held-out prompts."""
        sets = [name for name in getattr(getattr(self.trainer, "datamodule", None), "sets", ()) if name != "train"]
        for number, held_out in self._held_out.items():
            prefix = "val/" if len(sets) < 2 else f"val/{sets[number]}/"
            means = {prefix + name: mean for name, mean in held_out.take().items()}
            self.log_dict(means, batch_size=1, rank_zero_only=False)

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
        for name, values_N in rewards.items():
            self._say(f"unscored {name}", unscored(name, values_N, rollouts, self.rewards[name]))
            self._say(f"constant {name}", constant(name, values_N))

    def _check(self, experience: Experience) -> None:
        """Errors: ValueError for what cannot be learned from."""
        where = f"iteration {self.iterations}"
        if not experience.known_N.any():
            bad = [name for name, values_N in experience.rewards.items() if not values_N.isfinite().any()]
            raise ValueError(
                f"{where}: none of its {len(experience.known_N)} answers has a finite reward ({', '.join(bad)}); look "
                "at the reward, and go on from the last checkpoint: the answers are kept beside it"
            )
        kl_N = experience.kl_N
        limit = math.inf if self.kl.limit is None else self.kl.limit
        if not kl_N.isfinite().all() or kl_N.mean() > limit:
            over = int((~kl_N.isfinite() | (kl_N > limit)).sum())
            raise ValueError(
                f"{where}: the KL to the reference exploded: {kl_N.mean():.4g} nats an answer, {over} of {len(kl_N)} "
                f"answers above kl.limit {limit:g}; lower the learning rate or raise kl.coefficient, and go on from an "
                "earlier checkpoint"
            )

    def _say(self, what: str, text: str) -> None:
        """Say something the first time that it is so."""
        if text and what not in self._told:
            self._told.add(what)
            if self.global_rank == 0:
                logger.warning("iteration %d: %s", self.iterations, text)

    def _files(self) -> RolloutFiles | None:
        """Where rollouts are kept: beside the checkpoints; nowhere if there are none."""
        folder = getattr(self.trainer.checkpoint_callback, "dirpath", None)
        if not folder:
            return None
        own = {name: identity(each) for name, each in zip(self.rewards, self._sources, strict=True)}
        watched = {_WATCH + name: identity(each) for name, each in zip(self.watched, self._watch_sources, strict=True)}
        return RolloutFiles(Path(folder).parent / "rollouts", own | watched)

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the iterations' state; an iteration that could not be learned from is to be done again."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[STATE] = {
            "iterations": self.iterations,
            "controller": self.controller.state_dict(),
            "mixing": None if self.mixing is None else self.mixing.state_dict(),
            "averages": self._averages.state_dict(),
        }
        self._describe(checkpoint)
        if self._fatal is not None:
            checkpoint["loops"]["fit_loop"] = self._loops
        elif (files := self._files()) is not None and self.trainer.is_global_zero:
            # The checkpoint is not whole yet: until the next one, what the last one began with stays.
            files.forget(self._saved_before)
            self._saved_before = self.iterations

    def _describe(self, checkpoint: dict[str, Any]) -> None:
        """Say of which model it is, and leave out what never trains."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not getattr(datamodule, "tokenizer", ""):
            return
        assert isinstance(self.model, PolicyModel)
        if self._description is None:
            self._description = describe(self.model, datamodule.tokenizer, datamodule.options)
        checkpoint[DESCRIPTION] = self._description
        for name in self._description["left_out"]:
            checkpoint["state_dict"].pop(name, None)

    def _loops_now(self) -> dict[str, Any]:
        """Where the loops and the loader stand; at the end of a batch, what a checkpoint of it has."""
        return copy.deepcopy(self.trainer.fit_loop.state_dict())  # pyright: ignore[reportAttributeAccessIssue]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the iterations' state.

        Errors: ValueError for a checkpoint of another kind of run.
        """
        super().on_load_checkpoint(checkpoint)
        assert isinstance(self.model, PolicyModel)
        frozen = check_frozen(self.model, checkpoint)
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] |= frozen
        if "loops" not in checkpoint:
            return
        if (state := checkpoint.get(STATE)) is None:
            raise ValueError("the checkpoint is of no online run; begin from its model instead: backbone.name")
        self._loops = copy.deepcopy(checkpoint["loops"]["fit_loop"])
        self.iterations = self._saved_before = state["iterations"]
        self.controller.load_state_dict(state["controller"])
        self._averages.load_state_dict(state["averages"])
        if self.mixing is not None:
            self.mixing.load_state_dict(state["mixing"] or {})

    def count_batches(self, checkpoint: dict[str, Any]) -> None:
        """A batch is an iteration, whatever its steps: Lightning's count is right."""
