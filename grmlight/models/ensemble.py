"""EnsembleModel: k reward models that are called as one.

Notable decisions:

- Members are whole models, LoRA adapters on one backbone, or heads on one backbone; each has a head of its own.
- One forward runs all members, so DDP and FSDP2 see all use of every weight. Which adapters a member has is a name that
  the layers read; `requires_grad` is never touched.
- Losses read each member's own rewards (`Outputs.members`); only the ensemble's reward is recentered and aggregated, so
  training does not depend on the statistics or on the aggregation.

Shape suffixes: K members, N responses, M reference responses, H hidden size.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grmlight.data.batch import GroupBatch
from grmlight.models import ensemble_folder
from grmlight.models.aggregation import Aggregation, aggregate
from grmlight.models.backbone import (
    BackboneConfig,
    adapter_on,
    add_adapters,
    enable_checkpointing,
    language_head,
    same_adapter,
    tuner_layers,
)
from grmlight.models.causal_model import Packing
from grmlight.models.ensemble_config import EnsembleConfig, check_backbone
from grmlight.models.heads import HeadConfig, RewardHead
from grmlight.models.modes import evaluating
from grmlight.models.outputs import Outputs, Signal
from grmlight.models.reward_model import RewardModel


class MemberHeads(nn.Module):
    """The members' heads on one backbone: those of all members, or of the one that is on.

    Attributes:
        member: the member whose head runs; None for all.
    """

    def __init__(self, heads: Sequence[RewardHead]) -> None:
        super().__init__()
        self.members = nn.ModuleList(heads)
        self.member: int | None = None

    def forward(self, hidden_NH: Float[Tensor, "N H"]) -> Float[Tensor, "K N"] | Float[Tensor, " N"]:
        """Float32 rewards."""
        if self.member is not None:
            return self.members[self.member](hidden_NH)
        return torch.stack([head(hidden_NH) for head in self.members])


class EnsembleModel(nn.Module):
    """An ensemble of reward models, called as a `RewardModel` is.

    Args:
        trunks: reward models: one a member, or the one that all members share.
        config: the ensemble.
        seed: of the heads and adapters that further members get on a shared backbone: member i's from seed + i.

    Attributes:
        config: the ensemble; see `aggregate_by`.
        reward_shift_K, reward_scale_K: statistics of `recenter`: a member's reward is (reward - shift) / scale.

    Raises:
        ValueError: adapters are to be members, and the backbone has none.

    Source: Coste et al. 2024 (arXiv 2310.02743).
    """

    reward_shift_K: Tensor
    reward_scale_K: Tensor

    def __init__(self, trunks: Sequence[RewardModel], config: EnsembleConfig, seed: int = 0) -> None:
        super().__init__()
        assert len(trunks) == config.trunks
        self.config = config
        self.trunks = nn.ModuleList(trunks)
        self._adapters: list[str] = []
        if config.members != "models":
            self._share(trunks[0], [seed + number for number in range(1, config.size)])
        for name, fill in (("reward_shift_K", torch.zeros), ("reward_scale_K", torch.ones)):
            self.register_buffer(name, fill(config.size, dtype=torch.float32, device="cpu"))

    @classmethod
    def build(
        cls,
        backbone: BackboneConfig,
        head: HeadConfig,
        config: EnsembleConfig,
        seed: int = 0,
        reference: bool = False,
        packing: Packing = "auto",
    ) -> Self:
        """Make the members; see `RewardModel` for the arguments.

        Member i has what is random of it from seed + i: a whole model is what `RewardModel` makes of that seed,
        adapters and heads are those of that model.
        """
        check_backbone(backbone, config)
        # All models begin as one, so one of them has the reference for all.
        trunks = [
            RewardModel(backbone, head, seed + number, reference and number == 0, packing)
            for number in range(config.trunks)
        ]
        return cls(trunks, config, seed)

    def _share(self, trunk: RewardModel, seeds: Sequence[int]) -> None:
        hidden = language_head(trunk.lm).weight.shape[-1]
        heads = [trunk.head, *(RewardHead(hidden, trunk.head_config, seed) for seed in seeds)]
        trunk.head = MemberHeads(heads)  # pyright: ignore[reportAttributeAccessIssue] - in the one head's place
        if self.config.members == "adapters":
            check_backbone(trunk.backbone_config, self.config)
            assert isinstance(trunk.backbone, PeftModel)
            self._adapters = add_adapters(trunk.backbone, seeds)
            if trunk.backbone_config.gradient_checkpointing:
                enable_checkpointing(trunk.lm, context_fn=same_adapter)

    @property
    def first(self) -> RewardModel:
        """The first member's model, or the shared one."""
        trunk = self.trunks[0]
        assert isinstance(trunk, RewardModel)
        return trunk

    @property
    def lm(self) -> PreTrainedModel:
        """The first causal LM; before training all are the same, if it is pretrained."""
        return self.first.lm

    @property
    def backbone_config(self) -> BackboneConfig:
        """How each backbone was made."""
        return self.first.backbone_config

    @property
    def head_config(self) -> HeadConfig:
        """The shape of each head."""
        return self.first.head_config

    @property
    def packed(self) -> bool:
        """Whether the members run packed."""
        return self.first.packed

    def forward(self, batch: GroupBatch, signals: frozenset[Signal] = frozenset()) -> Outputs:
        """The ensemble's rewards, and each member's own outputs with the signals asked for.

        `logps_N` is the mean over the members, `reference_logps_N` that of the LM they all began as. `hidden_NH` is in
        the members' outputs alone.

        Errors: as `RewardModel`.
        """
        members = tuple(self._run(batch, signals))
        raw_KN = torch.stack([member.rewards_N for member in members])
        rewards_KN = (raw_KN - self.reward_shift_K[:, None]) / self.reward_scale_K[:, None]
        logps = [member.logps_N for member in members if member.logps_N is not None]
        return Outputs(
            rewards_N=aggregate(rewards_KN, self.config.aggregation, self.config.variance_weight),
            logps_N=torch.stack(logps).mean(dim=0) if logps else None,
            reference_logps_N=members[0].reference_logps_N,
            rewards_KN=rewards_KN,
            members=members,
        )

    def _run(self, batch: GroupBatch, signals: frozenset[Signal]) -> Iterable[Outputs]:
        """Each member's outputs."""
        if self.config.members == "heads":
            shared = self.first(batch, signals)
            yield from (dataclasses.replace(shared, rewards_N=rewards_N) for rewards_N in shared.rewards_N)
            return
        for number in range(self.config.size):
            outputs = (
                self._run_adapters(number, batch, signals) if self._adapters else self.trunks[number](batch, signals)
            )
            if outputs.reference_logps_N is not None:
                batch = dataclasses.replace(batch, reference_logps_N=outputs.reference_logps_N)
            yield outputs

    def _run_adapters(self, number: int, batch: GroupBatch, signals: frozenset[Signal]) -> Outputs:
        trunk = self.first
        assert isinstance(trunk.head, MemberHeads)
        trunk.head.member = number
        with adapter_on(tuner_layers(trunk.backbone), self._adapters[number]):
            return trunk(batch, signals)

    def aggregate_by(self, aggregation: Aggregation, variance_weight: float | None = None) -> None:
        """Make one reward of the members' in another way. Errors: ValueError for an unknown name."""
        weight = self.config.variance_weight if variance_weight is None else variance_weight
        self.config = dataclasses.replace(self.config, aggregation=aggregation, variance_weight=weight)

    @torch.no_grad()
    def recenter(self, batches: Iterable[GroupBatch]) -> None:
        """Give each member a mean of 0 and a (population) variance of 1 over the responses of reference batches.

        Call it on every rank with the same batches.

        Errors: ValueError that names members that give every response the same reward, or none that is finite.
        """
        rewards = []
        with evaluating(self):
            for batch in batches:
                raw_KN = torch.stack([member.rewards_N for member in self(batch).members])
                rewards.append(raw_KN.cpu().double()[:, (batch.count_G[batch.group_N] > 0).cpu()])
        rewards_KM = torch.cat(rewards, dim=1)
        shift_K, scale_K = rewards_KM.mean(dim=1), rewards_KM.std(dim=1, correction=0)
        usable_K = scale_K > 1e-6 * rewards_KM.abs().amax(dim=1)
        if not usable_K.all():
            numbers = ", ".join(str(number) for number, usable in enumerate(usable_K.tolist()) if not usable)
            raise ValueError(
                f"ensemble: member {numbers} gives all {rewards_KM.shape[1]} reference responses the same reward, or "
                "one that is not finite, so it cannot be scaled; lower the learning rate, or give more reference pairs"
            )
        self.reward_shift_K.copy_(shift_K)
        self.reward_scale_K.copy_(scale_K)

    def statistics(self) -> dict[str, Tensor]:
        """The buffers of `recenter` by their names in the state."""
        return {"reward_shift_K": self.reward_shift_K, "reward_scale_K": self.reward_scale_K}

    def train_language_head(self, train: bool) -> None:
        """See `RewardModel.train_language_head`."""
        for trunk in self.trunks:
            assert isinstance(trunk, RewardModel)
            trunk.train_language_head(train)

    @property
    def scoring_passes(self) -> int:
        """Forwards of a backbone that a response takes."""
        return 1 if self.config.members == "heads" else self.config.size

    def float32_parts(self) -> list[nn.Module]:
        """See `RewardModel.float32_parts`."""
        return [part for part in self.modules() if isinstance(part, RewardHead)]

    def blank(self) -> Self:
        """See `RewardModel.blank`."""
        return type(self)([trunk.blank() for trunk in self.trunks if isinstance(trunk, RewardModel)], self.config)

    def folder_entries(self) -> dict[str, Any]:
        """What `grmlight.json` says of this model."""
        lora = self.backbone_config.lora if self._adapters else None
        return {
            "kind": "ensemble",
            "ensemble": dataclasses.asdict(self.config),
            "head": dataclasses.asdict(self.head_config),
            "lora": lora and dataclasses.asdict(lora),
        }

    def save_pretrained(
        self, directory: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Write a folder that `from_pretrained` can load; `docs/ensembles.md` has its layout."""
        ensemble_folder.save(self, directory, tokenizer)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str], **options: Any) -> Self:
        """Load what `save_pretrained` wrote.

        Args:
            directory: the folder.
            options: `aggregation` and `variance_weight`, in place of the saved ones; the rest as
                `RewardModel.from_pretrained`, but for `lora` where adapters are the members.

        Errors: ValueError if no ensemble lies there, or its tensors do not fit; names them.
        """
        return ensemble_folder.load(cls, directory, options)


AnyRewardModel = RewardModel | EnsembleModel
"""What `RewardModule` trains."""
