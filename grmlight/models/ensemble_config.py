"""What an ensemble is made of, as a user writes it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from grmlight.models.aggregation import Aggregation, check_aggregation
from grmlight.models.backbone import BackboneConfig

Members = Literal["models", "adapters", "heads"]


@dataclasses.dataclass(frozen=True)
class EnsembleConfig:
    """What an ensemble is made of, and how it makes one reward of its members'.

    Attributes:
        size: members.
        members: "models": each has a causal LM of its own; "adapters": LoRA adapters on a shared one; "heads": heads on
            a shared one.
        aggregation: "mean", "wco" (worst-case optimization: the minimum) or "uwo" (uncertainty-weighted optimization:
            the mean minus `variance_weight` times the population variance).
        variance_weight: lambda of "uwo"; 0.5 is the paper's for best-of-n, 0.1 for PPO.
        reference_pairs: training pairs on whose rewards each member is recentered and scaled.
    """

    size: int = 3
    members: Members = "models"
    aggregation: Aggregation = "mean"
    variance_weight: float = 0.5
    reference_pairs: int = 128

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"ensemble size must be at least 2, got {self.size}")
        if self.members not in ("models", "adapters", "heads"):
            raise ValueError(f"ensemble members must be 'models', 'adapters' or 'heads', got {self.members!r}")
        if self.reference_pairs < 1:
            raise ValueError(f"ensemble reference_pairs must be at least 1, got {self.reference_pairs}")
        check_aggregation(self.aggregation, self.variance_weight)

    @property
    def trunks(self) -> int:
        """How many causal LMs there are."""
        return self.size if self.members == "models" else 1


def check_backbone(backbone: BackboneConfig, config: EnsembleConfig) -> None:
    """Refuse members that the backbone cannot have. Errors: ValueError in one line."""
    if config.members == "adapters" and backbone.lora is None:
        raise ValueError("ensemble members: adapters needs adapters; set backbone.lora, or members to models or heads")
