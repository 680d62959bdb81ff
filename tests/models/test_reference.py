"""Reference log-probs: the start model's, without gradient and without dropout, whatever training has done since."""

from __future__ import annotations

import pytest
import torch

from grmlight.models import HeadConfig, RewardModel, Signal, adapters_off
from tests.models.groups import mixed_groups, starts
from tests.models.plain import plain_copy, plain_outputs, wake_adapters
from tests.reference.packing import pack_groups
from tests.tiny_models import tiny_backbone, tiny_reward_model

SIGNALS = frozenset({Signal.LOGPS, Signal.REFERENCE_LOGPS})
DROPOUT = {"attention_dropout": 0.3}


def build(kind: str, packing: str = "auto") -> RewardModel:
    options = {"full": {}, "lora": {"lora": True}, "frozen": {"frozen": True}}[kind]
    return tiny_reward_model("mistral", config=DROPOUT, reference=True, packing=packing, **options)


def train_a_little(model: RewardModel) -> None:
    wake_adapters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("packing", ["auto", "never"])
@pytest.mark.parametrize("kind", ["full", "lora", "frozen"])
def test_it_is_the_start_model(kind, packing):
    groups = mixed_groups()
    model = build(kind, packing)
    with torch.no_grad():
        _, expected = plain_outputs(plain_copy(model).eval(), groups, starts(groups))
    train_a_little(model)
    outputs = model(pack_groups(groups), SIGNALS)
    torch.testing.assert_close(outputs.reference_logps_N, expected, rtol=1e-5, atol=1e-5)
    assert not outputs.reference_logps_N.requires_grad
    if kind != "frozen":
        assert not torch.allclose(outputs.logps_N, expected, atol=1e-2)


@pytest.mark.parametrize("kind", ["full", "lora", "frozen"])
def test_it_leaves_the_model_as_it_was(kind):
    model = build(kind)
    wake_adapters(model)
    model.head.eval()
    modes = [part.training for part in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    model(pack_groups(mixed_groups()), SIGNALS)
    assert modes == [part.training for part in model.modules()]
    assert trained == [parameter.requires_grad for parameter in model.parameters()]


def test_adapters_come_back_after_an_error():
    model = build("lora").eval()
    wake_adapters(model)
    batch = pack_groups(mixed_groups())
    expected = model(batch).rewards_N
    with adapters_off(model.backbone):
        assert not torch.allclose(model(batch).rewards_N, expected)
    with pytest.raises(IndexError), adapters_off(model.backbone):
        model(pack_groups([[[100_000]]]))
    assert torch.equal(model(batch).rewards_N, expected)


def test_gradients_do_not_reach_it():
    model, batch = build("lora"), pack_groups(mixed_groups())
    wake_adapters(model)
    outputs = model.eval()(batch, SIGNALS)
    (outputs.logps_N - outputs.reference_logps_N).sum().backward()
    twin = build("lora").eval()
    wake_adapters(twin)
    twin(batch, frozenset({Signal.LOGPS})).logps_N.sum().backward()
    for (name, parameter), (_, other) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert parameter.grad is other.grad is None or torch.equal(parameter.grad, other.grad), name


def test_the_frozen_copy_is_not_stored_and_not_trained():
    model = build("full")
    assert not any("reference" in name for name in model.state_dict())
    assert not any(p.requires_grad for p in model.reference.parameters())
    model.train()
    assert not any(part.training for part in model.reference.modules())
    other = tiny_reward_model("mistral", config=DROPOUT, seed=1, reference=True)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.lm.lm_head.weight, model.lm.lm_head.weight)
    parent = torch.nn.Module()
    parent.model = other
    assert parent.state_dict().keys() == {f"model.{name}" for name in model.state_dict()}
    parent.load_state_dict({f"model.{name}": tensor for name, tensor in model.state_dict().items()})


def test_missing_tensors_of_a_state_are_still_an_error():
    model = build("full")
    state = model.state_dict()
    del state["backbone.lm_head.weight"]
    with pytest.raises(RuntimeError, match="backbone.lm_head.weight"):
        model.load_state_dict(state)


def test_a_model_without_one_says_so():
    with pytest.raises(ValueError, match="reference=True"):
        tiny_reward_model("llama")(pack_groups(mixed_groups()), SIGNALS)


def test_no_copy_where_none_is_needed():
    for options in ({"lora": True}, {"frozen": True}):
        assert tiny_reward_model("llama", reference=True, **options).reference is None
    assert RewardModel(tiny_backbone(), HeadConfig(width=4)).reference is None
