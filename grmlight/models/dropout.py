"""Dropout switched off for good, where two forwards of one model must give the same numbers."""

from __future__ import annotations

from torch import nn


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to 0: those that are layers, adapters' ones too, and rates that attention reads."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)
