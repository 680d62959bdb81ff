"""Dropout that is switched off stays off in training, in layers, adapters and attention alike."""

import numpy as np
import pytest
import torch

from grmlight.data.encode import TokenGroup, pack
from grmlight.models import BackboneConfig, LoraOptions, PolicyModel, Signal
from grmlight.models.dropout import switch_off_dropout
from tests.models.groups import mixed_groups, starts
from tests.tiny_models import tiny_config


def policy(architecture, lora, **dropouts):
    config = tiny_config(architecture, **dropouts)
    adapters = LoraOptions(r=4, alpha=8, dropout=0.5) if lora else None
    return PolicyModel(BackboneConfig(name="", pretrained=False, config=config, lora=adapters)).train()


@pytest.mark.parametrize(
    ("architecture", "lora", "dropouts"),
    [
        ("llama", True, {}),
        ("llama", False, {"attention_dropout": 0.5}),
        ("gpt_neox", False, {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
        ("gpt2", False, {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5}),
    ],
)
def test_two_forwards_in_training_are_the_same(architecture, lora, dropouts):
    model = policy(architecture, lora, **dropouts)
    if lora:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    groups = mixed_groups()
    batch = pack(
        [TokenGroup(tuple(map(np.array, group)), tuple(at)) for group, at in zip(groups, starts(groups), strict=True)]
    )
    first, second = (model(batch, frozenset({Signal.LOGPS})).logps_N for _ in range(2))
    assert not torch.equal(first, second)
    switch_off_dropout(model.lm)
    assert model.training
    first, second = (model(batch, frozenset({Signal.LOGPS})).logps_N for _ in range(2))
    assert torch.equal(first, second)
