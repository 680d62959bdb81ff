"""RewardModule: trains a reward model on preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from grmlight import losses
from grmlight.data.batch import GroupBatch
from grmlight.data.datamodule import PairDataModule
from grmlight.data.names import resolve
from grmlight.models import (
    AnyRewardModel,
    BackboneConfig,
    EnsembleConfig,
    EnsembleModel,
    HeadConfig,
    Outputs,
    Packing,
    RewardModel,
    Signal,
)
from grmlight.models.checkpoint import BACKBONE_OPTIONS
from grmlight.models.flops import ModelFlops, model_flops
from grmlight.models.foreign import Found, find, warn_of_text
from grmlight.module import NonFinite, Schedule, default_optimizer
from grmlight.pair_module import PairModule, Reference
from grmlight.training.recentering import recenter


class RewardModule(PairModule):
    """A causal LM that keeps its LM head, with a reward head on the last response token's hidden state.

    Trained with the Bradley-Terry loss; add regularizers as callbacks (`grmlight.regularizers`) for GRM.

    Args:
        backbone: a hub name, a folder, `package:MODULE/PATH`, or a whole `BackboneConfig`.
        head: "mlp", "linear", a whole `HeadConfig`, or "keep": the backbone is a folder with a reward model of any
            known layout (docs/interop.md), and training goes on from it, its head included.
        use_margin: subtract each pair's annotated margin inside the loss.
        label_smoothing: share of the label given to the other side.
        packing: "auto" packs wherever the model is proven to allow it, "never" pads.
        reference: where the start model's log-probs come from that DPO needs where the backbone is fully trained:
            "store" computes them once before the first step and keeps them in the training pairs' store, "copy" holds
            a second, frozen model in memory (sharded as the first). With adapters they are switched off instead.
        optimizer: makes the optimizer from the trainable parameters.
        schedule: course of the learning rate after the warm-up.
        warmup_ratio: share of all optimizer steps in which the learning rate rises from 0.
        seed: seed of newly made weights and of dropout.
        ensemble: train several members as one model, each by its own loss; member i begins as `seed` + i would. The
            loss is the mean over the members.
        on_nonfinite: "stop" ends a run whose loss or gradient is not finite and names step, terms and rows, "skip"
            leaves such steps out, at the cost of waiting for the device once a step.

    Source: GRM (arXiv 2406.10216).
    """

    def __init__(
        self,
        backbone: str | BackboneConfig,
        head: str | HeadConfig = "mlp",
        use_margin: bool = False,
        label_smoothing: float = 0.0,
        packing: Packing = "auto",
        reference: Reference = "store",
        optimizer: OptimizerCallable = default_optimizer,
        schedule: Schedule = "cosine",
        warmup_ratio: float = 0.03,
        seed: int = 0,
        on_nonfinite: NonFinite = "stop",
        ensemble: EnsembleConfig | None = None,
    ) -> None:
        super().__init__(backbone, packing, reference, optimizer, schedule, warmup_ratio, seed, on_nonfinite)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")
        self.kept = _found(self.backbone) if head == "keep" else None
        if self.kept is not None:
            self.backbone, self.head = self.kept.backbone, self.kept.head
        else:
            self.head = HeadConfig(kind=head) if isinstance(head, str) else head  # pyright: ignore[reportArgumentType]
        if self.kept is not None and ensemble is not None:
            raise ValueError("an ensemble's members begin with heads of their own; drop ensemble or head: keep")
        self.use_margin = use_margin
        self.label_smoothing = label_smoothing
        self.ensemble = ensemble
        self._recentered_at = -1

    def setup(self, stage: str) -> None:
        """As usual. Errors: ValueError for an ensemble without training pairs to recenter it on."""
        if stage == "fit" and self.ensemble is not None and getattr(self.trainer, "datamodule", None) is None:
            raise ValueError("an ensemble is recentered on the training pairs of a PairDataModule; train with one")
        super().setup(stage)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As usual; an ensemble is saved recentered."""
        if isinstance(self.model, EnsembleModel) and getattr(self.trainer, "datamodule", None) is not None:
            self._recenter(self.model)
            statistics = self.model.statistics().items()
            checkpoint["state_dict"] |= {f"model.{name}": tensor.clone() for name, tensor in statistics}
        super().on_save_checkpoint(checkpoint)

    def _build(self) -> AnyRewardModel:
        model = super()._build()
        assert isinstance(model, AnyRewardModel)
        model.train_language_head(bool(self.signals & {Signal.LOGPS, Signal.CHOSEN_LOGPS}))
        return model

    def _make_model(self) -> AnyRewardModel:
        options: dict[str, Any] = {"reference": self._wants("copy"), "packing": self.packing, "seed": self.seed}
        if self.ensemble is not None:
            self._check_reference(self.ensemble)
            return EnsembleModel.build(self.backbone, self.head, self.ensemble, **options)
        model = RewardModel(self.backbone, self.head, **options)
        if self.kept is not None:
            self._go_on(self.kept, model)
        return model

    def _check_reference(self, ensemble: EnsembleConfig) -> None:
        """A penalty against the start model needs one that all members begin as."""
        if ensemble.members == "models" and not self.backbone.pretrained and Signal.REFERENCE_LOGPS in self.signals:
            raise ValueError(
                "ensemble: models that begin from random weights have no start model in common, which a penalty with a "
                "reference needs; use a pretrained backbone, or DirectPreference(reference=False)"
            )

    def _recenter(self, model: EnsembleModel) -> None:
        """Recenter an ensemble on training pairs, once a step and only in training."""
        if self.trainer.state.fn != TrainerFn.FITTING or self._recentered_at == self.global_step:
            return
        self._recentered_at = self.global_step
        datamodule: PairDataModule = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        shares = self.trainer.world_size * self.trainer.accumulate_grad_batches
        with self._memory_errors():
            recenter(self.trainer, model, datamodule.prepared["train"], -(-datamodule.pairs_per_step // shares))

    def prepare_to_score(self) -> None:
        """An ensemble is evaluated and saved recentered."""
        if isinstance(self.model, EnsembleModel):
            self._recenter(self.model)

    def on_validation_start(self) -> None:
        """The model is evaluated as it would be saved now."""
        super().on_validation_start()
        self.prepare_to_score()

    def on_train_end(self) -> None:
        """The model is saved as it is evaluated."""
        super().on_train_end()
        self.prepare_to_score()

    def _go_on(self, kept: Found, model: RewardModel) -> None:
        kept.fill(model)
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            warn_of_text(kept.folder, datamodule.options)

    def preference(self, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, " G"]:
        """Bradley-Terry loss of each group: the weighted mean over its comparisons."""
        loss_C = losses.preference_loss(
            outputs.rewards_N[batch.better_C],
            outputs.rewards_N[batch.worse_C],
            batch.label_C,
            batch.margin_C if self.use_margin else 0.0,
            self.label_smoothing,
        )
        return batch.mean_by_group(batch.weight_C * loss_C)

    def model_flops(self) -> ModelFlops | None:
        """Forward and backward with the signals of this run."""
        return model_flops(self.model, self.signals) if isinstance(self.model, RewardModel) else None


def _found(backbone: BackboneConfig) -> Found:
    """The reward model that a backbone's name means."""
    if not backbone.pretrained or backbone.config or backbone.revision:
        raise ValueError(
            "head: keep goes on from a reward model as it is; leave out the backbone's pretrained, config and revision"
        )
    folder = Path(resolve(backbone.name, "backbone"))
    if not folder.is_dir():
        raise ValueError(f"head: keep needs a folder, and {backbone.name!r} is none; download the model first")
    options = {name: getattr(backbone, name) for name in BACKBONE_OPTIONS}
    return find(folder, **{name: value for name, value in options.items() if value})
