"""FLOPs that a model needs for training on packs, by arithmetic: the numerator of MFU."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from grmlight.models.backbone import decoder, language_head
from grmlight.models.causal_model import CausalModel
from grmlight.models.outputs import Signal


@dataclasses.dataclass(frozen=True)
class ModelFlops:
    """FLOPs of forward and backward; norms, activations, the reward head and what is computed again are left out.

    Attributes:
        token: for each token in a pack.
        attended: for each pair of a token and one that it sees; sliding windows are not taken into account.
        scored: for each scored token; penalties on chosen responses alone are taken to see half of them.
    """

    token: float
    attended: float
    scored: float

    def of(self, tokens: float, attended: float, scored: float) -> float:
        """All FLOPs of some packs."""
        return self.token * tokens + self.attended * attended + self.scored * scored


def model_flops(model: CausalModel, signals: frozenset[Signal]) -> ModelFlops | None:
    """FLOPs at the signals that training asks for; None for mixtures of experts and for models of other layers.

    A weight that learns costs 6 a token (forward, and two products in backward), a frozen one under weights that learn
    4, and 2 where nothing learns.
    """
    config: Any = model.lm.config.get_text_config(decoder=True)
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    if not all(isinstance(getattr(config, name, None), int) for name in ("num_attention_heads", "hidden_size")):
        return None
    embeddings = {id(layer.weight) for layer in model.lm.modules() if isinstance(layer, nn.Embedding)}
    weights = [p for p in decoder(model.lm).parameters() if p.dim() == 2 and id(p) not in embeddings]
    learns = any(p.requires_grad for p in weights)
    token = sum(p.numel() * (6 if p.requires_grad else 4 if learns else 2) for p in weights)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads) * config.num_hidden_layers
    output = language_head(model.lm).weight if model.has_language_head else weights[0].new_empty(0)
    head = output.numel() * (6 if output.requires_grad else 4 if learns else 2)
    reference = Signal.REFERENCE_LOGPS in signals
    base = sum(p.numel() for p in weights if model.backbone_config.lora is None or not p.requires_grad)
    share = 1.0 if Signal.LOGPS in signals else 0.5 if Signal.CHOSEN_LOGPS in signals else 0.0
    return ModelFlops(
        token=token + (2 * base if reference else 0),
        attended=width * (12 if learns else 4) + (width * 4 if reference else 0),
        scored=share * head + (2 * output.numel() if reference else 0),
    )
