"""RewardModule: trains a reward model on preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PretrainedConfig

from grmlight import losses
from grmlight.data.batch import GroupBatch
from grmlight.data.datamodule import PairDataModule
from grmlight.data.names import resolve
from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation.metrics import pair_metrics
from grmlight.evaluation.predictions import Prediction, predictions
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
    read_config,
    shard,
    training_memory,
)
from grmlight.models.checkpoint import BACKBONE_OPTIONS
from grmlight.models.flops import ModelFlops, model_flops
from grmlight.models.foreign import Found, check_vocabulary, find, warn_of_text
from grmlight.models.memory import Setting, device_memory, memory_advice
from grmlight.module import GroupModule, NonFinite, Schedule, default_optimizer
from grmlight.training.description import DESCRIPTION, check_frozen, describe
from grmlight.training.recentering import recenter
from grmlight.training.reference import reference_logps, start_weights
from grmlight.training.sharding import check_trainer

Reference = Literal["store", "copy"]


class RewardModule(GroupModule):
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

    adapters = 1
    """Sets of adapters that learn, where the backbone has any."""

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
        super().__init__(optimizer, schedule, warmup_ratio, seed, on_nonfinite)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")
        if reference not in ("store", "copy"):
            raise ValueError(f"reference must be 'store' or 'copy', got {reference!r}")
        self.backbone = BackboneConfig(name=backbone) if isinstance(backbone, str) else backbone
        self.kept = _found(self.backbone) if head == "keep" else None
        if self.kept is not None:
            self.backbone, self.head = self.kept.backbone, self.kept.head
        else:
            self.head = HeadConfig(kind=head) if isinstance(head, str) else head  # pyright: ignore[reportArgumentType]
        if self.kept is not None and ensemble is not None:
            raise ValueError("an ensemble's members begin with heads of their own; drop ensemble or head: keep")
        self.use_margin = use_margin
        self.label_smoothing = label_smoothing
        self.packing: Packing = packing
        self.reference: Reference = reference
        self.ensemble = ensemble
        self._recentered_at = -1
        self._start_weights = ""
        self._description: dict[str, Any] | None = None
        self.set_metrics: dict[str, list[MetricCollection]] = {}

    def configure_model(self) -> None:
        """Build the model once, with just what the regularizers of this run need, and compute what they need of it.

        A checkpoint is restored later, so the weights are the start weights here.

        Errors: ValueError if the data does not fit the model's vocabulary or positions; see also
        `grmlight.training.reference`.
        """
        stored = self._wants("store") and self.trainer.state.fn == TrainerFn.FITTING
        if self.model is not None and not stored:
            return
        model = self._build() if self.model is None else self.model
        assert isinstance(model, AnyRewardModel)
        weights = start_weights(self.trainer, model) if stored else ""
        if self.model is None and self.device_mesh is not None:
            dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32
            shard(model, self.device_mesh["data_parallel"], dtype)
        self.model = model
        if stored:
            self._compute_reference(model, weights)

    def _wants(self, reference: Reference) -> bool:
        """Whether this run's regularizers need reference log-probs, and they are to come from there."""
        trained = self.backbone.lora is None and not self.backbone.frozen
        return trained and Signal.REFERENCE_LOGPS in self.signals and self.reference == reference

    def _compute_reference(self, model: AnyRewardModel, weights: str) -> None:
        """Give the DataModule the reference log-probs of its training pairs; `weights` tells those of the model now."""
        datamodule: PairDataModule | None = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            raise ValueError(
                "reference log-probs are kept in the store of a PairDataModule's training pairs; "
                "train with one, or set RewardModule(reference='copy')"
            )
        self._start_weights = self._start_weights or weights
        datamodule.reference_logps = reference_logps(
            self.trainer,
            model,
            datamodule.prepared["train"],
            self._start_weights,
            pairs=datamodule.pairs_per_step,
            unchanged=bool(weights) and weights == self._start_weights,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say of which model it is and what its reference is of, and leave out what never trains."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["grmlight_start_weights"] = self._start_weights
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            return
        assert isinstance(self.model, AnyRewardModel)
        if isinstance(self.model, EnsembleModel):
            self._recenter(self.model)
            statistics = self.model.statistics().items()
            checkpoint["state_dict"] |= {f"model.{name}": tensor.clone() for name, tensor in statistics}
        if self._description is None:
            self._description = describe(self.model, datamodule.tokenizer, datamodule.options)
        checkpoint[DESCRIPTION] = self._description
        for name in self._description["left_out"]:
            checkpoint["state_dict"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Bring the frozen weights that the checkpoint has left out.

        Errors: ValueError if this run's backbone has others, or its reference was another start model.
        """
        super().on_load_checkpoint(checkpoint)
        start = checkpoint.get("grmlight_start_weights")
        if start and self._start_weights and start != self._start_weights:
            raise ValueError(
                "the checkpoint's run had other start weights, to which its DPO penalty refers; "
                "give the backbone and seed that it began with"
            )
        assert isinstance(self.model, AnyRewardModel)
        frozen = check_frozen(self.model, checkpoint)
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] |= frozen

    def _build(self) -> AnyRewardModel:
        _check_fit(read_config(self.backbone), getattr(self.trainer, "datamodule", None))
        model = self._make_model()
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

    def memory_advice(self) -> list[str]:
        """From the backbone's options, the trainer's and the data's."""
        trainer, data = self.trainer, getattr(self.trainer, "datamodule", None)
        if trainer.state.fn != "fit":
            return ["fewer pairs at once (data.init_args.eval_pairs)"]
        shares = trainer.world_size * trainer.accumulate_grad_batches
        prepared = getattr(data, "prepared", {}).get("train")
        setting = Setting(
            accumulate=trainer.accumulate_grad_batches,
            pairs=-(-getattr(data, "pairs_per_step", shares) // shares),
            bf16="bf16" in str(trainer.precision),
            sharded=self.device_mesh is not None,
            longest=prepared.report["max_tokens"] if prepared else None,
            device_bytes=device_memory(self.device),
            devices=trainer.world_size,
        )
        advice = memory_advice(self.backbone, setting, self.ensemble, self.adapters)
        return ["fewer pairs at once (data.init_args.eval_pairs)", *advice] if trainer.validating else advice

    def setup(self, stage: str) -> None:
        """Make the metrics of this stage's evaluation sets; before training, say what memory it takes."""
        check_trainer(self.trainer)
        if stage == "fit":
            _check_masters(self.backbone)
        if stage == "fit" and self.ensemble is not None and getattr(self.trainer, "datamodule", None) is None:
            raise ValueError("an ensemble is recentered on the training pairs of a PairDataModule; train with one")
        if stage == "fit" and self.model is None:
            memory = training_memory(self.backbone, self.ensemble, self.adapters)
            rank_zero_info(memory.describe(self.trainer.world_size))
        datamodule, device = getattr(self.trainer, "datamodule", None), self.trainer.strategy.root_device
        for name in ("val", "test"):
            sets = list(getattr(datamodule, f"{name}_sources", {}) or {name: ""})
            self.set_metrics[name] = [
                pair_metrics(_prefix(name, each), device, self.ensemble is not None) for each in sets
            ]

    def validation_step(self, batch: GroupBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Add a pack to the metrics of its set; its rewards are for the callbacks."""
        return self._evaluate(self.set_metrics["val"][dataloader_idx], batch)

    def test_step(self, batch: GroupBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Add a pack to the metrics of its set; its rewards are for the callbacks."""
        return self._evaluate(self.set_metrics["test"][dataloader_idx], batch)

    def _evaluate(self, metrics: MetricCollection, batch: GroupBatch) -> dict[str, Tensor]:
        with self._memory_errors():
            outputs = self(batch)
            metrics.to(self.device).update(outputs, batch)
        return {"rewards_N": outputs.rewards_N}

    def on_validation_epoch_end(self) -> None:
        """Log each set's metrics over the whole set."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log each set's metrics over the whole set."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        for metrics in self.set_metrics[stage]:
            self.log_dict(metrics.compute(), batch_size=1, rank_zero_only=False)
            metrics.reset()

    def predict_step(self, batch: GroupBatch, batch_idx: int, dataloader_idx: int = 0) -> list[Prediction]:
        """The rewards of each pair, by row."""
        with self._memory_errors():
            outputs = self(batch)
            return predictions(outputs.rewards_N, batch, outputs.rewards_KN)


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


def _check_masters(backbone: BackboneConfig) -> None:
    """Weights that learn must be float32."""
    if backbone.dtype == "bfloat16" and backbone.lora is None and not backbone.frozen:
        raise ValueError(
            "backbone.dtype bfloat16 would round most updates of a fully trained model away; set it to float32, and "
            "trainer.precision to bf16-mixed"
        )


def _check_fit(config: PretrainedConfig, datamodule: PairDataModule | None) -> None:
    """Compare the tokenizer's vocabulary and the longest pair with the model's, before it is built."""
    if datamodule is None:
        return
    tokenizer = load_tokenizer(datamodule.tokenizer, datamodule.options.chat_template)
    check_vocabulary(tokenizer, datamodule.tokenizer, config)
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    for prepared in datamodule.prepared.values():
        if positions is not None and (longest := prepared.report["max_tokens"]) > positions:
            raise ValueError(
                f"{prepared.source} holds a pair of {longest} tokens and the backbone has {positions} positions; "
                f"set data.init_args.prepare.max_length to {positions} or less"
            )


def _prefix(stage: str, name: str) -> str:
    return f"{stage}/" if name == stage else f"{stage}/{name}/"
