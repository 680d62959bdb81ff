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
import math
import time
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info

from grmlight.evaluation.group_scorer import GroupScorer
from grmlight.models import (
    BackboneConfig,
    HeadConfig,
    Packing,
    PolicyModel,
    shard,
    training_memory,
)
from grmlight.models.dropout import switch_off_dropout
from grmlight.models.policy_model import Critic
from grmlight.module import NonFinite, Schedule, default_optimizer
from grmlight.pair_module import check_masters
from grmlight.policy.online.advantages import Advantage
from grmlight.policy.online.collect import Prompts
from grmlight.policy.online.controllers import KlController, KlOptions
from grmlight.policy.online.experience import SCORE, Experience
from grmlight.policy.online.figures import Averages, rollout_figures
from grmlight.policy.online.gatherer import Gatherer
from grmlight.policy.online.held_out import HeldOut, held_out_values
from grmlight.policy.online.mixing import KL, Mixer
from grmlight.policy.online.options import Shaping, Update
from grmlight.policy.online.sharing import Guest
from grmlight.policy.rewards import Aggregator, RewardSource, check_aggregator, combine, open_rewards
from grmlight.policy.sampler import Sampler, SamplingOptions
from grmlight.training.checkpoints import keep_checkpoint
from grmlight.training.description import DESCRIPTION, check_frozen, describe
from grmlight.training.seeding import mixed_seed
from grmlight.training.sharding import check_trainer

STATE = "grmlight_online"
"""A checkpoint's entry."""


class OnlineModule(Gatherer):
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
        dropout: whether the policy's dropout stays on in its updates; the log-probs that they compare with have none.

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
        dropout: bool = False,
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
        self.dropout = dropout
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
        check_aggregator(self.aggregator, self.variance_weight)
        if self.mixing is not None and (self.aggregator, self.variance_weight) != ("mean", 0.5):
            raise ValueError("mixing takes the place of an aggregator; drop aggregator and variance_weight")
        if self.mixing is not None and self.shaping != Shaping():
            raise ValueError("mixing takes rewards as they are; drop shaping")
        if self.mixing is not None and self.kl.where == "loss":
            raise ValueError(f"mixing takes the KL as the reward {KL!r}; set kl.where to 'reward'")

    @property
    def curve_method(self) -> str:
        """What the run's curves are called."""
        method = "ppo" if self.advantage == "gae" else self.advantage
        return method if self.mixing is None else f"{method} {self.mixing.name}"

    @property
    def curve_beta(self) -> float | None:
        """The coefficient of the KL, where it is the same throughout."""
        return self.kl.coefficient if self.kl.target is None else None

    def setup(self, stage: str) -> None:
        """Open the rewards.

        Errors: ValueError for two of one name, and for one that cannot be opened.
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
        if not self.dropout:
            switch_off_dropout(model.lm)
        if self.device_mesh is not None:
            dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32
            shard(model, self.device_mesh["data_parallel"], dtype)
        self.model = model

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
        self.sampler = self.sampler or self.make_sampler()
        self._loops = self._loops or self._loops_now()
        rank_zero_info(f"answers are sampled by {self.sampler.name}")
        self.warn_of_truncation()

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

    def training_step(  # pyright: ignore[reportIncompatibleMethodOverride] - its batches are prompts
        self, batch: Prompts, batch_idx: int
    ) -> None:
        """One iteration. What it cannot learn from is raised when the step is over: see `on_train_batch_end`."""
        began = time.perf_counter()
        try:
            with self._memory_errors():
                experience, watched, seconds = self.collect(batch)
                self.check_experience(experience)
            told = self._streams(experience)
            mixed = self._update_mixing(experience, told)
        except ValueError as error:
            self._fatal = error
            return
        combined_N = None if self.mixing else combine(experience.rewards, self.aggregator, self.variance_weight)
        figures = rollout_figures(experience, watched, told, self.controller.coefficient, combined_N) | mixed
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

    def validation_step(  # pyright: ignore[reportIncompatibleMethodOverride] - its batches are prompts
        self, batch: Prompts, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """One answer to each held-out prompt, drawn alike at every validation.

        Errors: ValueError as in an iteration, but for rewards that are not finite: they are counted.
        """
        self.sampler = self.sampler or self.make_sampler()
        collector = self.collector(dataclasses.replace(self.sampling, samples=1), None)
        # What a sharded model gathers within inference mode could not be trained with afterwards.
        with self._memory_errors(), torch.inference_mode(False), torch.no_grad():
            kept, _ = collector.collect(batch, self.iterations, "", mixed_seed(self.seed, batch_idx, 0))
            own, watched = self.split_rewards(kept.rewards)
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
        elif (files := self.rollout_files()) is not None and self.trainer.is_global_zero:
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
