"""The reward head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from grmlight.models import HeadConfig, RewardHead


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (HeadConfig("linear"), ["summary.weight", "summary.bias"]),
        (HeadConfig("mlp"), ["summary.0.weight", "summary.0.bias", "summary.2.weight", "summary.2.bias"]),
        (
            HeadConfig("mlp", layers=2, width=4),
            [f"summary.{slot}.{kind}" for slot in (0, 2, 4) for kind in ("weight", "bias")],
        ),
    ],
)
def test_parameter_names_are_the_released_models(config, names):
    head = RewardHead(6, config)
    assert list(head.state_dict()) == names
    assert head(torch.randn(3, 6)).shape == (3,)


def test_the_default_is_the_papers():
    head = RewardHead(6, HeadConfig())
    assert head.summary[0].weight.shape == (1024, 6)
    assert isinstance(head.summary[1], nn.ReLU)
    assert head.summary[2].weight.shape == (1, 1024)
    assert head.dropout.p == 0.1


def test_initial_parameters_depend_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = RewardHead(6, HeadConfig(), seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, third = RewardHead(6, HeadConfig(), seed=4), RewardHead(6, HeadConfig(), seed=5)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
        assert not torch.equal(tensor, third.state_dict()[name])
        assert tensor.abs().max() <= (6 if name.startswith("summary.0") else 1024) ** -0.5


def test_it_is_float32_whatever_is_around_it():
    head = RewardHead(6, HeadConfig(width=4, dropout=0.0)).to(torch.bfloat16).half().double()
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    hidden = torch.randn(3, 6, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        rewards = head(hidden)
    assert rewards.dtype == torch.float32
    assert torch.equal(rewards, head(hidden.float()))
    assert {p.device.type for p in head.to("meta").parameters()} == {"meta"}


def test_dropout_acts_on_the_hidden_state_in_training():
    head, hidden = RewardHead(64, HeadConfig(width=8, dropout=0.5)), torch.ones(2, 64)
    assert not torch.equal(head(hidden), head(hidden))
    head.eval()
    assert torch.equal(head(hidden), head(hidden))


@pytest.mark.parametrize("wrong", [{"kind": "deep"}, {"layers": 0}, {"width": 0}, {"dropout": 1.0}])
def test_wrong_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match="head"):
        HeadConfig(**wrong)
