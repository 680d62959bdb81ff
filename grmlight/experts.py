"""ExpertsModule: trains a mixture of experts in three phases within one run (DMoERM)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.nn import functional as F

from grmlight.data.batch import GroupBatch
from grmlight.data.course import Course
from grmlight.data.labels import group_labels
from grmlight.evaluation.router_error import RouterError
from grmlight.models import BackboneConfig, LoraOptions, Outputs
from grmlight.models.expert_config import ExpertsConfig, PhaseName, Routing
from grmlight.models.expert_files import entries
from grmlight.models.experts import ExpertsModel, ExpertsOutputs
from grmlight.models.flops import ModelFlops
from grmlight.module import learning_rate_factor
from grmlight.reward import RewardModule
from grmlight.training.checkpoints import Checkpoints
from grmlight.training.description import DESCRIPTION
from grmlight.training.objective import Penalty
from grmlight.training.phases import Phases, make_course
from grmlight.training.sharding import UNSTEPPED

_PHASE = "grmlight_phase"


class ExpertsModule(RewardModule):
    """A reward model of experts: task models and their router, then experts of capabilities, then their mixtures.

    The whole course is one epoch (`trainer.max_epochs: 1`); what trains in a phase trains in no other. A checkpoint is
    kept at the end of each phase.

    Args:
        backbone: a hub name, a folder, `package:MODULE/PATH`, or a whole `BackboneConfig` with `lora`, the adapters'
            shape.
        tasks: each task (a value of the pairs' `category`) with the capabilities (values of `capability`) that it has
            experts for.
        routing: "classifier" learns to tell tasks by their prompts; "given" takes each pair's category.
        phases: how long each phase is, and its learning rate.
        stop_after: stop when this phase is over; go on from its checkpoint without it.
        options: see `RewardModule`.

    Source: Quan 2024, DMoERM (arXiv 2403.01197).
    """

    own_terms = frozenset({"router"})

    def __init__(
        self,
        backbone: str | BackboneConfig,
        tasks: dict[str, list[str]],
        routing: Routing = "classifier",
        phases: Phases | None = None,
        stop_after: Literal["task", "experts"] | None = None,
        **options: Any,
    ) -> None:
        named = BackboneConfig(name=backbone, lora=LoraOptions()) if isinstance(backbone, str) else backbone
        super().__init__(named, **options)
        if stop_after not in (None, "task", "experts"):
            raise ValueError(f"stop_after must be 'task', 'experts' or null, got {stop_after!r}")
        if self.ensemble is not None or self.kept is not None:
            raise ValueError("experts are no ensemble and begin with heads of their own; drop ensemble and head: keep")
        self.experts = ExpertsConfig(tasks, routing)
        self.phases = phases or Phases()
        self.stop_after = stop_after
        self.adapters = len(tasks) + sum(self.experts.counts)
        self._idle: list[torch.nn.Parameter] = []

    @property
    def course(self) -> Course:
        """The phases of this run's training pairs."""
        course: Course | None = self.trainer.datamodule.course  # pyright: ignore[reportAttributeAccessIssue]
        assert course is not None
        return course

    @property
    def _experts(self) -> ExpertsModel:
        assert isinstance(self.model, ExpertsModel)
        return self.model

    def setup(self, stage: str) -> None:
        """As `RewardModule`; also number tasks and capabilities, and lay out the course.

        Errors: ValueError for a category or capability of the training pairs that has no name here, for one that has
        no pairs, and for more than one epoch.
        """
        super().setup(stage)
        for metrics in (each for sets in self.set_metrics.values() for each in sets):
            metrics.add_metrics({"router": RouterError()})
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit":
            if datamodule is None:
                raise ValueError("experts learn from the categories of a PairDataModule's pairs; train with one")
            if self.trainer.max_epochs != 1:
                raise ValueError(
                    f"trainer.max_epochs is {self.trainer.max_epochs}; set it to 1, and the passes of each phase in "
                    "model.init_args.phases"
                )
        for name, prepared in getattr(datamodule, "prepared", {}).items():
            strict = name == "train" or self.experts.routing == "given"
            labels = group_labels(prepared.store, prepared.source, self.experts.tasks, strict)
            datamodule.labels[name] = labels
            if unseen := labels.describe_unseen():
                rank_zero_info(f"{name}: {unseen}")
        if stage == "fit":
            datamodule.course = make_course(
                self.phases, datamodule.labels["train"], self.experts.tasks, datamodule.pairs_per_step, self.seed
            )

    def _make_model(self) -> ExpertsModel:
        model = ExpertsModel(self.backbone, self.experts, self.head, self.seed, self.packing, phase="task")
        model.check_signals(self.signals)
        return model

    def model_flops(self) -> ModelFlops | None:
        """Not known: passes differ from phase to phase."""
        return None

    def penalties(self, outputs: Outputs, batch: GroupBatch) -> dict[str, Penalty]:
        """The regularizers', and where the router learns its cross-entropy, of logits."""
        found = super().penalties(outputs, batch)
        assert isinstance(outputs, ExpertsOutputs)
        if outputs.route_logits_GT is not None and batch.task_G is not None:
            values_G = F.cross_entropy(outputs.route_logits_GT, batch.task_G, reduction="none")
            found["router"] = Penalty(values_G, 1.0, convex=False)
        return found

    def schedule_factor(self, steps: int) -> Callable[[int], float]:
        """The schedule with its warm-up in each phase, times the phase's rate."""
        course = self.course
        factors = {
            leg.name: learning_rate_factor(self.schedule, math.ceil(self.warmup_ratio * leg.steps), leg.steps)
            for leg in course.legs
        }

        def factor(step: int) -> float:
            name: Any = course.at(step).name
            return self.phases.named(name).rate * factors[name](step - course.start(name))

        return factor

    def on_train_batch_start(self, batch: GroupBatch, batch_idx: int) -> None:
        """Before a step: is it the first of its phase, or of a run that goes on within one?"""
        leg: Any = self.course.at(self.global_step)
        first = self.global_step == self.course.start(leg.name) and batch.micro_batch == 0
        if first or not self._idle:
            self._enter(leg.name, first)

    def _enter(self, name: PhaseName, first: bool) -> None:
        if first:
            self._experts.begin(name)
        learning = self._experts.learning(name)
        named = dict(self._experts.named_parameters())
        self._idle = [each for other, each in named.items() if each.requires_grad and other not in learning]
        leg = self.course.at(self.global_step)
        count = sum(each.numel() for each in learning.values())
        rank_zero_info(f"phase {name}: {len(leg.groups)} pairs, {leg.steps} steps, {count:,} parameters learn")

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """As usual; what does not train in this phase has no gradient, so that no weight, moment or decay moves."""
        for parameter in self._idle:
            parameter.grad = None
        super().configure_gradient_clipping(optimizer, *args, **kwargs)

    def logs_at(self, step: int) -> bool:
        """Also where a phase ends, whose terms are others than the next one's."""
        return super().logs_at(step) or any(step == self.course.end(leg.name) for leg in self.course.legs)

    def on_train_batch_end(self, outputs: Any, batch: GroupBatch, batch_idx: int) -> None:
        """As usual; at the end of a phase keep a checkpoint, and stop if it shall be the last."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        step, ends = self.global_step, {self.course.end(leg.name): leg.name for leg in self.course.legs}
        if batch.micro_batch + 1 < batch.packs or step not in ends:
            return
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints):
                callback.keep(self.trainer)
        if ends[step] == self.stop_after:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also the phase, and which parameters no optimizer step has met yet."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_PHASE] = self._experts.phase
        if described := checkpoint.get(DESCRIPTION):
            # The rest of the description stays what it was; the phase does not.
            checkpoint[DESCRIPTION] = described | {"experts": entries(self._experts)}
        states = [optimizer.state for optimizer in self.trainer.optimizers]
        learning = ((name, each) for name, each in self.named_parameters() if each.requires_grad)
        checkpoint[UNSTEPPED] = [name for name, each in learning if not any(each in state for state in states)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also the phase.

        Errors: ValueError for a checkpoint of no experts.
        """
        super().on_load_checkpoint(checkpoint)
        if _PHASE not in checkpoint:
            raise ValueError("the checkpoint is of another model: it says no phase of experts")
        self._experts.phase = checkpoint[_PHASE]
