"""Tiny random ensembles, and their members taken out of them."""

import copy

import torch

from grmlight.models import EnsembleConfig, EnsembleModel, HeadConfig, RewardModel
from tests.models.plain import wake_adapters
from tests.tiny_models import tiny_backbone

KINDS = ("models", "adapters", "heads")
SEED = 7


def tiny_ensemble(members, size=3, aggregation="mean", architecture="llama", packing="auto", **backbone):
    """Members without dropout that are far apart, in training mode."""
    config = tiny_backbone(architecture, members == "adapters", **backbone)
    head = HeadConfig(width=16, dropout=0.0)
    model = EnsembleModel.build(config, head, EnsembleConfig(size, members, aggregation), SEED, packing=packing)
    wake_adapters(model)
    return model


def own_names(model, number):
    """From the names of a member alone to those of the ensemble's state."""
    if model.config.members == "models":
        prefix = f"trunks.{number}."
        return {name: prefix + name for name in alone(model, number).state_dict()}
    adapter = model._adapters[number] if model._adapters else "default"
    found = {}
    for name in _shape_of(model).state_dict():
        inner = name.replace("head.", f"head.members.{number}.") if name.startswith("head.") else name
        found[name] = "trunks.0." + inner.replace(".default.", f".{adapter}.")
    return found


def alone(model, number):
    """A member as a reward model of its own."""
    if model.config.members == "models":
        return copy.deepcopy(model.trunks[number])
    single = _shape_of(model)
    state = model.state_dict()
    single.load_state_dict({name: state[inner] for name, inner in own_names(model, number).items()})
    return single.train(model.training)


def _shape_of(model):
    return RewardModel(model.backbone_config, model.head_config, packing="auto" if model.packed else "never")


def differing(left: torch.nn.Module, right: torch.nn.Module) -> float:
    """Largest difference of two models' tensors."""
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
