"""PairModule: what modules share that train one backbone on the pairs of a PairDataModule, whatever they make of it.

The reference of a fully trained backbone, checkpoints that say of which model they are, evaluation sets, memory advice.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PretrainedConfig

from grmlight.data.batch import GroupBatch
from grmlight.data.datamodule import PairDataModule
from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation.metrics import pair_metrics
from grmlight.evaluation.predictions import Prediction, predictions
from grmlight.models import (
    AnyRewardModel,
    BackboneConfig,
    EnsembleConfig,
    Packing,
    PolicyModel,
    Signal,
    read_config,
    shard,
    training_memory,
)
from grmlight.models.foreign import check_vocabulary
from grmlight.models.memory import Setting, device_memory, memory_advice
from grmlight.regularized import RegularizedModule
from grmlight.training.description import DESCRIPTION, check_frozen, describe
from grmlight.training.reference import reference_logps, start_weights
from grmlight.training.sharding import check_trainer

Reference = Literal["store", "copy"]


class PairModule(RegularizedModule):
    """Base of the modules on preference pairs. Subclasses make the model and give the preference loss.

    Args:
        backbone: a hub name, a folder, `package:MODULE/PATH`, or a whole `BackboneConfig`.
        packing: "auto" packs wherever the model is proven to allow it, "never" pads.
        reference: where the start model's log-probs come from where they are needed and the backbone is fully trained:
            "store" computes them once before the first step and keeps them in the pairs' stores, "copy" holds a second,
            frozen model in memory (sharded as the first). With adapters they are switched off instead.
        engine: see `GroupModule`.
    """

    adapters = 1
    """Sets of adapters that learn, where the backbone has any."""
    ensemble: EnsembleConfig | None = None
    evaluation_signals: frozenset[Signal] = frozenset()
    """What the forward computes in evaluation, beside rewards."""

    def __init__(
        self, backbone: str | BackboneConfig, packing: Packing, reference: Reference, *engine: Any, **options: Any
    ) -> None:
        super().__init__(*engine, **options)
        if reference not in ("store", "copy"):
            raise ValueError(f"reference must be 'store' or 'copy', got {reference!r}")
        self.backbone = BackboneConfig(name=backbone) if isinstance(backbone, str) else backbone
        self.packing: Packing = packing
        self.reference: Reference = reference
        self._start_weights = ""
        self._description: dict[str, Any] | None = None
        self.set_metrics: dict[str, list[MetricCollection]] = {}

    @abstractmethod
    def _make_model(self) -> AnyRewardModel | PolicyModel:
        """The model, with the start weights."""

    def _build(self) -> AnyRewardModel | PolicyModel:
        _check_fit(read_config(self.backbone), getattr(self.trainer, "datamodule", None))
        return self._make_model()

    def configure_model(self) -> None:
        """Build the model once, with just what this run needs, and compute what is needed of the start model.

        A checkpoint is restored later, so the weights are the start weights here.

        Errors: ValueError if the data does not fit the model's vocabulary or positions; see also
        `grmlight.training.reference`.
        """
        stored = self.stored_sets() if self._wants("store") else []
        if self.model is not None and not stored:
            return
        model: Any = self._build() if self.model is None else self.model
        weights = start_weights(self.trainer, model) if stored else ""
        if self.model is None:
            self.before_sharding(model)
        if self.model is None and self.device_mesh is not None:
            dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32
            shard(model, self.device_mesh["data_parallel"], dtype)
        self.model = model
        if stored:
            self._compute_reference(model, weights, stored)

    def stored_sets(self) -> Sequence[str]:
        """The sets of the DataModule whose responses need log-probs of the start model in this stage."""
        return ["train"] if self.trainer.state.fn == TrainerFn.FITTING else []

    def before_sharding(self, model: Any) -> None:
        """What is to be done with the start model while each rank has the whole of it. Called on every rank."""

    def _wants(self, reference: Reference) -> bool:
        """Whether this run needs reference log-probs, and they are to come from there."""
        trained = self.backbone.lora is None and not self.backbone.frozen
        return trained and Signal.REFERENCE_LOGPS in self.signals and self.reference == reference

    def _compute_reference(self, model: Any, weights: str, sets: Sequence[str]) -> None:
        """Give the DataModule the reference log-probs of its sets; `weights` tells those of the model now."""
        datamodule: PairDataModule | None = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            raise ValueError(
                "reference log-probs are kept in the store of a PairDataModule's training pairs; "
                f"train with one, or set {type(self).__name__}(reference='copy')"
            )
        self._start_weights = self._start_weights or weights
        for name in sets:
            datamodule.reference_logps[name] = reference_logps(
                self.trainer,
                model,
                datamodule.prepared[name],
                self._start_weights,
                pairs=datamodule.pairs_per_step if name == "train" else datamodule.eval_pairs,
                unchanged=bool(weights) and weights == self._start_weights,
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say of which model it is and what its reference is of, and leave out what never trains."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["grmlight_start_weights"] = self._start_weights
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            return
        model: Any = self.model
        if self._description is None:
            self._description = describe(model, datamodule.tokenizer, datamodule.options)
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
                "the checkpoint's run had other start weights, to which its DPO loss refers; "
                "give the backbone and seed that it began with"
            )
        model: Any = self.model
        frozen = check_frozen(model, checkpoint)
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] |= frozen

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
            check_masters(self.backbone)
        if stage == "fit" and self.model is None:
            memory = training_memory(self.backbone, self.ensemble, self.adapters)
            rank_zero_info(memory.describe(self.trainer.world_size))
        datamodule, device = getattr(self.trainer, "datamodule", None), self.trainer.strategy.root_device
        for name in ("val", "test"):
            sets = list(getattr(datamodule, f"{name}_sources", {}) or {name: ""})
            self.set_metrics[name] = [self.metrics_of(_prefix(name, each), device) for each in sets]

    def metrics_of(self, prefix: str, device: torch.device) -> MetricCollection:
        """The metrics of one evaluation set, named `prefix` + metric."""
        return pair_metrics(prefix, device, self.ensemble is not None)

    def validation_step(self, batch: GroupBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Add a pack to the metrics of its set; its rewards are for the callbacks."""
        return self._evaluate(self.set_metrics["val"][dataloader_idx], batch)

    def test_step(self, batch: GroupBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Add a pack to the metrics of its set; its rewards are for the callbacks."""
        return self._evaluate(self.set_metrics["test"][dataloader_idx], batch)

    def _evaluate(self, metrics: MetricCollection, batch: GroupBatch) -> dict[str, Tensor]:
        with self._memory_errors():
            outputs = self(batch, self.evaluation_signals)
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
            outputs = self(batch, self.evaluation_signals)
            return predictions(outputs.rewards_N, batch, outputs.rewards_KN)


def check_masters(backbone: BackboneConfig) -> None:
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
