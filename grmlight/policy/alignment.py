"""PolicyModule: trains a policy on preference pairs, by likelihood or by direct alignment.

Notable decisions:

- The same packs, engine and exact steps as RewardModule; the reward it is measured by is the policy's implicit one.
- SFT trains on packs without the rejected responses, so it does not pay for them.
- An anchor on samples of the reference draws them once, before the first step, from (prompts, seed), and lays them
  behind the pairs of each pack: one forward, and a resumed run draws the same.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import MetricCollection

from grmlight.data.batch import GroupBatch, sum_dtype
from grmlight.data.datamodule import PairDataModule
from grmlight.data.encode import TokenGroup, pack
from grmlight.data.loader import Deal
from grmlight.data.names import resolve
from grmlight.data.select import better_alone, followed_by
from grmlight.evaluation.log_ratios import LOG_RATIOS, LogRatios, log_ratio_terms
from grmlight.models import BackboneConfig, Outputs, Packing, PolicyModel, Signal
from grmlight.models.dropout import switch_off_dropout
from grmlight.models.flops import ModelFlops, model_flops
from grmlight.models.loading import read_kind
from grmlight.module import NonFinite, Schedule, default_optimizer
from grmlight.pair_module import PairModule, Reference
from grmlight.policy.base_samples import base_samples
from grmlight.policy.objectives import AlignmentObjective, comparison_loss, implicit_rewards, nll
from grmlight.training.objective import Penalty

ANCHOR = "anchor"


class PolicyModule(PairModule):
    """A causal LM that learns from preference pairs: SFT on the chosen responses, DPO, IPO, SLiC or RPO.

    Regularizers may be added as callbacks, as to `RewardModule`.

    Args:
        backbone: a hub name, a folder, `package:MODULE/PATH`, or a whole `BackboneConfig`; a causal LM.
        objective: "sft", "dpo", "ipo", "slic", "rpo", or a whole `AlignmentObjective`.
        packing: "auto" packs wherever the model is proven to allow it, "never" pads.
        reference: where the start model's log-probs come from where the backbone is fully trained: "store" computes
            them once before the first step and keeps them in the pairs' stores, "copy" holds a second, frozen model in
            memory. With adapters they are switched off instead.
        optimizer: makes the optimizer from the trainable parameters.
        schedule: course of the learning rate after the warm-up.
        warmup_ratio: share of all optimizer steps in which the learning rate rises from 0.
        seed: seed of newly made weights, of dropout, and of an anchor's samples.
        on_nonfinite: "stop" ends a run whose loss or gradient is not finite and names step, terms and rows, "skip"
            leaves such steps out, at the cost of waiting for the device once a step.
        dropout: whether the model's dropout stays on in training. By default that of SFT alone does: the others compare
            the policy with a reference, which has none.

    Source: DPO (arXiv 2305.18290), IPO (2310.12036), SLiC-HF (2305.10425), RPO (2405.16436).
    """

    own_terms = frozenset({ANCHOR})

    def __init__(
        self,
        backbone: str | BackboneConfig,
        objective: str | AlignmentObjective = "dpo",
        packing: Packing = "auto",
        reference: Reference = "store",
        optimizer: OptimizerCallable = default_optimizer,
        schedule: Schedule = "cosine",
        warmup_ratio: float = 0.03,
        seed: int = 0,
        on_nonfinite: NonFinite = "stop",
        dropout: bool | None = None,
    ) -> None:
        super().__init__(backbone, packing, reference, optimizer, schedule, warmup_ratio, seed, on_nonfinite)
        self.alignment = AlignmentObjective(objective) if isinstance(objective, str) else objective  # pyright: ignore[reportArgumentType]
        self.evaluation_signals = self.alignment.needs
        self.dropout = dropout
        self._keeps_reference = False
        if self.backbone.frozen:
            raise ValueError("backbone: a frozen policy learns nothing; drop frozen")

    @property
    def curve_method(self) -> str:
        """What the run's curves are called."""
        return self.alignment.kind

    @property
    def curve_beta(self) -> float | None:
        """What holds the policy to the reference; SFT has no such thing."""
        return None if self.alignment.kind == "sft" else self.alignment.beta

    @property
    def signals(self) -> frozenset[Signal]:
        """What the objective and the regularizers need."""
        return super().signals | self.alignment.needs

    def setup(self, stage: str) -> None:
        """As usual. Errors: ValueError for a backbone that is no causal LM."""
        _check_policy(self.backbone)
        super().setup(stage)

    def keep_reference(self) -> None:
        """Hold the start model, so that fresh answers can be scored under it. Called in a callback's `setup`."""
        self._keeps_reference = True

    def _make_model(self) -> PolicyModel:
        kept = self._keeps_reference or self._wants("copy")
        model = PolicyModel(self.backbone, seed=self.seed, reference=kept, packing=self.packing)
        if not (self.alignment.kind == "sft" if self.dropout is None else self.dropout):
            switch_off_dropout(model.lm)
        return model

    def stored_sets(self) -> Sequence[str]:
        """The training pairs, and those evaluated on: implicit rewards are relative to the start model."""
        datamodule: PairDataModule | None = getattr(self.trainer, "datamodule", None)
        stage = self.trainer.state.fn.value if self.trainer.state.fn else None
        if datamodule is None or (stage == "fit" and not self.trainer.limit_val_batches):
            return ["train"]
        return list(datamodule.sources(stage))

    def before_sharding(self, model: PolicyModel) -> None:
        """In training, say what packs are turned into; an anchor's samples are drawn here, from the start model."""
        datamodule: PairDataModule | None = getattr(self.trainer, "datamodule", None)
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        anchor = self.alignment.pull
        if self.alignment.kind == "sft" and datamodule is not None:
            datamodule.select = _chosen
        elif anchor is not None and anchor.base == "reference":
            if datamodule is None:
                raise ValueError("an anchor on the reference answers the prompts of a PairDataModule; train with one")
            samples = base_samples(self.trainer, model, datamodule, anchor, self.seed)
            datamodule.select = _Followed(samples)

    def forward(self, batch: GroupBatch, signals: frozenset[Signal] = frozenset()) -> Outputs:
        """One forward of the model; its rewards are the implicit ones of the objective, without gradient."""
        outputs = super().forward(batch, signals)
        if outputs.logps_N is None or (self.alignment.kind != "sft" and outputs.reference_logps_N is None):
            return outputs
        return dataclasses.replace(outputs, rewards_N=implicit_rewards(self.alignment, outputs).detach())

    def preference(self, outputs: Outputs, batch: GroupBatch) -> Float[Tensor, " G"]:
        """The objective's loss of each group, without an anchor: the weighted mean over its comparisons."""
        return batch.mean_by_group(batch.weight_C * comparison_loss(self.alignment, outputs, batch))

    def penalties(self, outputs: Outputs, batch: GroupBatch) -> dict[str, Penalty]:
        """The regularizers', and RPO's anchor."""
        found = super().penalties(outputs, batch)
        if (anchor := self.alignment.pull) is not None:
            assert outputs.logps_N is not None
            values_N = nll(outputs.logps_N, batch, anchor.reduction == "mean")
            values_G = batch.mean_by_group(values_N[batch.better_C])
            if anchor.base == "reference":
                values_G = _behind(values_N, batch)
            found[ANCHOR] = Penalty(values_G, self.alignment.anchor_weight, convex=False)
        return found

    def figures(self, outputs: Outputs, batch: GroupBatch) -> dict[str, Tensor]:
        """Log-probs of both sides, and their ratios to the reference; of SFT those of the chosen side alone."""
        found = log_ratio_terms(outputs, batch)
        return {"chosen_logps": found["chosen_logps"]} if self.alignment.kind == "sft" else found

    def metrics_of(self, prefix: str, device: torch.device) -> MetricCollection:
        """Also where the log-probs went."""
        metrics = super().metrics_of(prefix, device)
        count = 2 if self.alignment.kind == "sft" else len(LOG_RATIOS)
        metrics.add_metrics({"log_ratios": LogRatios(count, sum_dtype(device))})
        return metrics

    def model_flops(self) -> ModelFlops | None:
        """Forward and backward with the signals of this run."""
        signals = self.signals - ({Signal.REFERENCE_LOGPS} if self._wants("store") else frozenset())
        return model_flops(self.model, signals) if isinstance(self.model, PolicyModel) else None


def _chosen(batch: GroupBatch, deal: Deal) -> GroupBatch:  # noqa: ARG001
    return better_alone(batch)


class _Followed:
    """Lays behind each group of a pack the samples of its prompt."""

    def __init__(self, samples: Sequence[TokenGroup]) -> None:
        self.samples = samples

    def __call__(self, batch: GroupBatch, deal: Deal) -> GroupBatch:
        return followed_by(batch, pack([self.samples[group] for group in deal.groups]))


def _behind(values_N: Float[Tensor, " N"], batch: GroupBatch) -> Float[Tensor, " G"]:
    """For each group the mean over the responses of the group that lies behind it; 0 for those behind."""
    half = batch.groups // 2
    zeros_G = values_N.new_zeros(batch.groups)
    means_G = zeros_G.index_add(0, batch.group_N, values_N) / zeros_G.index_add(
        0, batch.group_N, torch.ones_like(values_N)
    )
    return torch.cat([means_G[half:], zeros_G[half:]])


def _check_policy(backbone: BackboneConfig) -> None:
    """Refuse a folder of a model that is no causal LM."""
    if not backbone.name:
        return
    folder = Path(resolve(backbone.name, "backbone"))
    if not folder.is_dir():
        return
    try:
        entries = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = {}
    architectures = [str(each) for each in entries.get("architectures") or []]
    kind = read_kind(folder)
    if (
        "vhead_layer_type" in entries
        or kind not in ("reward", "policy")
        or any("ForSequenceClassification" in each for each in architectures)
    ):
        raise ValueError(
            f"backbone {backbone.name!r} is a reward model; a policy is a causal LM, such as a base model or the "
            "model/ of an SFT run"
        )
