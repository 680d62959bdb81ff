"""RewardModule: trains a reward model on preference pairs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PretrainedConfig

from grmlight import losses
from grmlight.data.batch import GroupBatch
from grmlight.data.datamodule import PairDataModule
from grmlight.data.tokenizer import load_tokenizer
from grmlight.description import DESCRIPTION, check_frozen, describe
from grmlight.evaluation.metrics import pair_metrics
from grmlight.evaluation.predictions import Prediction, predictions
from grmlight.models import (
    BackboneConfig,
    HeadConfig,
    Outputs,
    Packing,
    RewardModel,
    Signal,
    read_config,
    shard,
    training_memory,
)
from grmlight.module import GroupModule, Schedule, default_optimizer
from grmlight.sharding import check_trainer


class RewardModule(GroupModule):
    """A causal LM that keeps its LM head, with a reward head on the last response token's hidden state.

    Trained with the Bradley-Terry loss; add regularizers as callbacks (`grmlight.regularizers`) for GRM.

    Args:
        backbone: a hub name, a folder, `package:MODULE/PATH`, or a whole `BackboneConfig`.
        head: "mlp", "linear", or a whole `HeadConfig`.
        use_margin: subtract each pair's annotated margin inside the loss.
        label_smoothing: share of the label given to the other side.
        packing: "auto" packs wherever the model is proven to allow it, "never" pads.
        optimizer: makes the optimizer from the trainable parameters.
        schedule: course of the learning rate after the warm-up.
        warmup_ratio: share of all optimizer steps in which the learning rate rises from 0.
        seed: seed of newly made weights and of dropout.

    Source: GRM (arXiv 2406.10216).
    """

    def __init__(
        self,
        backbone: str | BackboneConfig,
        head: str | HeadConfig = "mlp",
        use_margin: bool = False,
        label_smoothing: float = 0.0,
        packing: Packing = "auto",
        optimizer: OptimizerCallable = default_optimizer,
        schedule: Schedule = "cosine",
        warmup_ratio: float = 0.03,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, schedule, warmup_ratio, seed)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")
        self.backbone = BackboneConfig(name=backbone) if isinstance(backbone, str) else backbone
        self.head = HeadConfig(kind=head) if isinstance(head, str) else head  # pyright: ignore[reportArgumentType]
        self.use_margin = use_margin
        self.label_smoothing = label_smoothing
        self.packing: Packing = packing
        self._description: dict[str, Any] | None = None
        self.set_metrics: dict[str, list[MetricCollection]] = {}

    def configure_model(self) -> None:
        """Build the model once, with just what the regularizers of this run need.

        Errors: ValueError if the data does not fit the model's vocabulary or positions.
        """
        if self.model is not None:
            return
        _check_fit(read_config(self.backbone), getattr(self.trainer, "datamodule", None))
        model = RewardModel(
            self.backbone,
            self.head,
            reference=Signal.REFERENCE_LOGPS in self.signals,
            packing=self.packing,
            seed=self.seed,
        )
        model.train_language_head(bool(self.signals & {Signal.LOGPS, Signal.CHOSEN_LOGPS}))
        if self.device_mesh is not None:
            dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32
            shard(model, self.device_mesh["data_parallel"], dtype)
        self.model = model

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say of which model it is, and leave out what never trains."""
        super().on_save_checkpoint(checkpoint)
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            return
        assert isinstance(self.model, RewardModel)
        if self._description is None:
            self._description = describe(self.model, datamodule.tokenizer, datamodule.options)
        checkpoint[DESCRIPTION] = self._description
        for name in self._description["left_out"]:
            checkpoint["state_dict"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Bring the frozen weights that the checkpoint has left out.

        Errors: ValueError if this run's backbone has others.
        """
        super().on_load_checkpoint(checkpoint)
        assert isinstance(self.model, RewardModel)
        frozen = check_frozen(self.model, checkpoint)
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] |= frozen

    def setup(self, stage: str) -> None:
        """Make the metrics of this stage's evaluation sets; before training, say what memory it takes."""
        check_trainer(self.trainer)
        if stage == "fit" and self.model is None:
            rank_zero_info(training_memory(self.backbone).describe(self.trainer.world_size))
        datamodule = getattr(self.trainer, "datamodule", None)
        for name in ("val", "test"):
            sets = list(getattr(datamodule, f"{name}_sources", {}) or {name: ""})
            self.set_metrics[name] = [pair_metrics(_prefix(name, each)) for each in sets]

    def validation_step(self, batch: GroupBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a pack to the metrics of its set."""
        self._evaluate(self.set_metrics["val"][dataloader_idx], batch)

    def test_step(self, batch: GroupBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a pack to the metrics of its set."""
        self._evaluate(self.set_metrics["test"][dataloader_idx], batch)

    def _evaluate(self, metrics: MetricCollection, batch: GroupBatch) -> None:
        metrics.to(self.device).update(self(batch), batch)

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
        return predictions(self(batch).rewards_N, batch)


def _check_fit(config: PretrainedConfig, datamodule: PairDataModule | None) -> None:
    """Compare the tokenizer's vocabulary and the longest pair with the model's, before it is built."""
    if datamodule is None:
        return
    text = config.get_text_config(decoder=True)
    tokens = len(load_tokenizer(datamodule.tokenizer))
    if tokens > text.vocab_size:
        raise ValueError(
            f"tokenizer {datamodule.tokenizer!r} has {tokens} tokens and the backbone's vocabulary {text.vocab_size}; "
            "use the backbone's own tokenizer"
        )
    positions = getattr(text, "max_position_embeddings", None)
    for prepared in datamodule.prepared.values():
        if positions is not None and (longest := prepared.report["max_tokens"]) > positions:
            raise ValueError(
                f"{prepared.source} holds a pair of {longest} tokens and the backbone has {positions} positions; "
                f"set data.init_args.prepare.max_length to {positions} or less"
            )


def _prefix(stage: str, name: str) -> str:
    return f"{stage}/" if name == stage else f"{stage}/{name}/"
