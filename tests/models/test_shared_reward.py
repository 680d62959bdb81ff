"""A reward's adapters on a policy's backbone: its scores are those on one of its own, and the policy feels nothing."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from grmlight.data.encode import TokenGroup, pack
from grmlight.data.texts import TextGroup
from grmlight.evaluation.group_scorer import ModelScorer, open_scorer
from grmlight.export import load_options
from grmlight.models import BackboneConfig, LoraOptions, PolicyModel, Signal, load_reward_model, training_memory
from grmlight.models.lora import tuner_layers
from grmlight.models.shared_reward import SharedReward, find_shared
from tests.guests import base, guest, lora
from tests.models.groups import mixed_groups, starts
from tests.models.plain import wake_adapters

GROUPS = [
    TextGroup("why is the red house green", ("it is not so", "the cat said that it was<|end|>", "")),
    TextGroup("the dog and the cat", ("why",)),
    TextGroup(({"role": "user", "content": "is it so"},), ("no", "it was the dog, said the cat")),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory, byte_tokenizer):
    return base(tmp_path_factory.mktemp("base"), byte_tokenizer)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, llama):
    return guest(tmp_path_factory.mktemp("guest") / "reward", llama)


def policy_on(folder, options=None, **more):
    """A policy whose adapters are not what they begin as."""
    given = dataclasses.replace(options or LoraOptions(r=2, alpha=4), dropout=0.1)
    model = PolicyModel(BackboneConfig(name=str(folder), lora=given, **more))
    wake_adapters(model)
    return model


def scores(scorer):
    return torch.tensor([score for group in scorer.score(GROUPS) for score in group])


def shared(folder, policy):
    model = SharedReward(find_shared(folder, policy.backbone_config), policy)
    return ModelScorer(model, AutoTokenizer.from_pretrained(folder), load_options(folder), progress=False)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_scores_are_those_of_the_model_alone(head, checkpointing, llama, tmp_path):
    folder = guest(tmp_path / "reward", llama, head)
    policy = policy_on(llama, gradient_checkpointing=checkpointing)
    torch.testing.assert_close(scores(shared(folder, policy)), scores(open_scorer(folder)), atol=1e-5, rtol=1e-5)
    assert policy.training


def test_a_token_that_its_own_engine_skips(llama, tmp_path):
    """A classifier's adapter with its padding equal to its end of text is read before that."""
    folder = guest(tmp_path / "reward", llama, "linear")
    before = scores(shared(folder, policy_on(llama)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<|end|>"
    tokenizer.save_pretrained(folder)
    found = scores(shared(folder, policy_on(llama)))
    torch.testing.assert_close(found, scores(open_scorer(folder)), atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "bloom"])
def test_other_architectures(architecture, byte_tokenizer, tmp_path):
    """Of which GPT-2's layers are laid out the other way around, and BLOOM is padded."""
    folder = base(tmp_path / "base", byte_tokenizer, architecture)
    reward = guest(tmp_path / "reward", folder, options=lora(architecture))
    found = scores(shared(reward, policy_on(folder, lora(architecture, 2))))
    torch.testing.assert_close(found, scores(open_scorer(reward)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [("down_proj",), ("q_proj", "down_proj")])
def test_layers_that_the_policy_does_not_adapt(targets, llama, tmp_path):
    folder = guest(tmp_path / "reward", llama, options=LoraOptions(r=3, alpha=9, targets=targets))
    policy = policy_on(llama, LoraOptions(r=2, alpha=4, targets=("q_proj",)))
    torch.testing.assert_close(scores(shared(folder, policy)), scores(open_scorer(folder)), atol=1e-5, rtol=1e-5)


def test_two_rewards_and_a_critic_apart_on_one_backbone(llama, adapter, tmp_path):
    other = guest(tmp_path / "reward", llama, "linear", LoraOptions(r=3, alpha=9, targets=("o_proj",)))
    options = BackboneConfig(name=str(llama), lora=lora(), gradient_checkpointing=True)
    policy = PolicyModel(options, values=1, critic="apart")
    wake_adapters(policy)
    first, second = shared(adapter, policy), shared(other, policy)
    for scorer, folder in ((first, adapter), (second, other), (first, adapter)):
        torch.testing.assert_close(scores(scorer), scores(open_scorer(folder)), atol=1e-5, rtol=1e-5)


def gradients(policy, between=None):
    """Of a loss on log-probs; something may happen between forward and backward."""
    policy.zero_grad()
    torch.manual_seed(0)
    groups = [tuple(map(np.array, group)) for group in mixed_groups()]
    batch = pack([TokenGroup(*each) for each in zip(groups, map(tuple, starts(mixed_groups())), strict=True)])
    signals = frozenset({Signal.LOGPS, Signal.REFERENCE_LOGPS})
    outputs = policy(batch, signals)
    if between is not None:
        between()
    outputs.logps_N.square().sum().backward()
    return {name: each.grad.clone() for name, each in policy.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_policy_does_not_feel_it(checkpointing, llama, adapter):
    """Its gradients are equal bit for bit, also where the reward scores before activations are computed again."""
    policy = policy_on(llama, gradient_checkpointing=checkpointing)
    twin = copy.deepcopy(policy)
    scorer = shared(adapter, policy)
    scores(scorer)
    found, expected = gradients(policy, lambda: scores(scorer)), gradients(twin)
    assert found.keys() == expected.keys()
    assert all("lora_" in name for name in found)
    assert all(torch.equal(found[name], grad) for name, grad in expected.items())
    assert max(grad.abs().max() for grad in found.values()) > 0
    assert policy.state_dict().keys() == twin.state_dict().keys()
    assert [each.requires_grad for each in policy.parameters()] == [each.requires_grad for each in twin.parameters()]
    assert not any(layer.base_layer._forward_hooks for layer in tuner_layers(policy.backbone))


def test_nothing_of_it_learns_and_an_error_takes_it_off(llama, adapter, monkeypatch):
    policy = policy_on(llama)
    scorer = shared(adapter, policy)
    own = [each for name, each in scorer._scorer.model.named_parameters() if not name.startswith("policy.")]
    assert own
    assert not any(each.requires_grad for each in own)
    before = gradients(policy)
    monkeypatch.setattr(policy, "_states", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scores(scorer)
    monkeypatch.undo()
    assert all(torch.equal(grad, before[name]) for name, grad in gradients(policy).items())


def test_in_bfloat16_scores_are_those_of_the_model_alone_in_bfloat16(llama, adapter):
    tokenizer, options = AutoTokenizer.from_pretrained(adapter), load_options(adapter)
    alone = ModelScorer(load_reward_model(adapter, dtype="bfloat16"), tokenizer, options)
    found = scores(shared(adapter, policy_on(llama, dtype="bfloat16")))
    assert torch.equal(found, scores(alone))
    assert not torch.allclose(found, scores(open_scorer(adapter)), atol=1e-5)


def test_what_cannot_share(llama, adapter, byte_tokenizer, tmp_path):
    named = BackboneConfig(name=str(llama), lora=lora())
    cases = [
        (adapter, {"lora": None}, "only a policy with adapters"),
        (llama, {}, "is no adapter, so it has a backbone of its own"),
        (adapter, {"name": str(base(tmp_path / "other", byte_tokenizer))}, "give both one base"),
        (adapter, {"revision": "main"}, "at revision main; give both one base"),
        (adapter, {"config": {"attention_bias": True}}, r"changes its config \(attention_bias\)"),
        (adapter, {"pretrained": False}, "is not pretrained"),
    ]
    for folder, changes, words in cases:
        with pytest.raises(ValueError, match=words) as raised:
            find_shared(folder, dataclasses.replace(named, **changes))
        assert "\n" not in str(raised.value)
    assert find_shared(adapter, dataclasses.replace(named, name=f"{llama}/../{llama.name}")) is not None


def test_an_adapter_that_does_not_fit_the_base(llama, adapter):
    policy = policy_on(llama)
    found = find_shared(adapter, policy.backbone_config)
    name = next(iter(found.adapter))
    wrong = dataclasses.replace(found, adapter=found.adapter | {name: torch.zeros(1, 1)})
    with pytest.raises(ValueError, match=f"on the policy's base model: .* of another shape {name}"):
        SharedReward(wrong, policy)
    found.adapter.pop(name)
    with pytest.raises(ValueError, match=f"missing {name}"):
        SharedReward(found, policy)


def test_the_memory_of_a_guest_is_that_of_its_matrices(llama, adapter):
    options = BackboneConfig(name=str(llama), lora=LoraOptions())
    found = find_shared(adapter, options)
    size = sum(each.numel() for each in found.adapter.values())
    alone, both = training_memory(options), training_memory(options, guests=[found.backbone.lora] * 2)
    assert both == dataclasses.replace(alone, state_bytes=alone.state_bytes + 2 * 4 * size)
