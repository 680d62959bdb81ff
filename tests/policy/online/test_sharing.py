"""Rewards that are adapters on the policy's own backbone, in whole runs: alone, on two ranks, and refused."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from grmlight import PrepareOptions
from grmlight.data.encode import TextEncoder
from grmlight.evaluation.group_scorer import open_scorer
from grmlight.models import BackboneConfig, LoraOptions
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.online.options import Update
from grmlight.policy.rewards import RewardSource, open_rewards
from grmlight.policy.sampler import SamplingOptions
from grmlight.training.checkpoints import Checkpoints
from grmlight.training.seeding import mixed_seed
from tests.guests import base, guest, lora
from tests.policy.online.parts import Canned, digits, fit
from tests.policy.online.run import main
from tests.test_training_runs import largest_difference
from tests.train_run import Run, losses

PROMPTS = [str(number) for number in range(12)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory, byte_tokenizer):
    return base(tmp_path_factory.mktemp("base"), byte_tokenizer)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, llama):
    return guest(tmp_path_factory.mktemp("guest") / "reward", llama)


def module_on(llama, rewards, adapted=True, **options):
    backbone = BackboneConfig(
        name=str(llama), lora=LoraOptions(r=2, alpha=4, dropout=0.0) if adapted else None, gradient_checkpointing=True
    )
    module = OnlineModule(
        backbone,
        rewards,
        **{"sampling": SamplingOptions(samples=4), "update": Update(minibatches=2), **options},
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        warmup_ratio=0.0,
    )
    module.sampler = Canned()
    return module


def shared(folder, name="guest"):
    return RewardSource(str(folder), name, share=True)


def alone_on(folder, rollouts):
    """What the adapter's folder says of answers when it is opened as any other reward."""
    found = open_scorer(folder).score([rollout.text_group() for rollout in rollouts])
    return torch.tensor([value for group in found for value in group]).double()


def test_a_run_against_it_is_one_against_the_model_alone(llama, adapter, tmp_path):
    """After steps too; and neither the checkpoint nor the saved policy nor the optimizer know of it."""
    found, expected = module_on(llama, [shared(adapter)]), module_on(llama, [RewardSource(str(adapter), "guest")])
    callback = Checkpoints(tmp_path / "checkpoints", every_n_train_steps=2, save_last=True)
    trainer = fit(found, PROMPTS, 6, epochs=2, callbacks=[callback], enable_checkpointing=True)
    fit(expected, PROMPTS, 6, epochs=2)
    rewards = found.experience.rewards["guest"]
    torch.testing.assert_close(rewards, alone_on(adapter, found.experience.rollouts), atol=1e-5, rtol=1e-5)
    assert rewards.std() > 0.01
    for name, tensor in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)
    kept = torch.load(callback.last_model_path, weights_only=True)
    names = {f"model.{name}" for name in expected.model.state_dict()}
    assert kept["state_dict"].keys() == names
    learning = sum(each.numel() for each in expected.model.parameters() if each.requires_grad)
    assert sum(each.numel() for group in trainer.optimizers[0].param_groups for each in group["params"]) == learning
    found.model.save_pretrained(tmp_path / "policy", AutoTokenizer.from_pretrained(llama))
    expected.model.save_pretrained(tmp_path / "expected", AutoTokenizer.from_pretrained(llama))
    saved, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("policy", "expected"))
    assert saved.keys() == wanted.keys()
    torch.testing.assert_close(saved, wanted, atol=1e-5, rtol=1e-4)
    AutoModelForCausalLM.from_pretrained(tmp_path / "policy")


def test_a_policy_trains_to_the_same_bits_with_it_and_without(llama, adapter):
    alone, watched = module_on(llama, [digits]), module_on(llama, [digits], watch=[shared(adapter)])
    fit(alone, PROMPTS, 6)
    trainer = fit(watched, PROMPTS, 6)
    assert math.isfinite(trainer.callback_metrics["rollout/watch_guest"])
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(watched.model.state_dict()[name], tensor), name


def test_several_make_one_score(llama, adapter, tmp_path):
    other = guest(tmp_path / "reward", llama, "linear", lora(rank=3))
    module = module_on(llama, [shared(adapter), shared(other, "other")], aggregator="wco")
    fit(module, PROMPTS[:6], 6)
    rewards = module.experience.rewards
    for name, folder in (("guest", adapter), ("other", other)):
        expected = alone_on(folder, module.experience.rollouts)
        torch.testing.assert_close(rewards[name], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(module.experience.scores_N, torch.minimum(*rewards.values()))


def test_text_is_read_as_the_reward_was_trained_to(llama, tmp_path):
    """By its own chat template and preparation: here, answers that are too long are refused."""
    folder = guest(tmp_path / "reward", llama, read=PrepareOptions(max_length=28))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", " said<|end|>")
    tokenizer.save_pretrained(folder)
    module = module_on(llama, [shared(folder)])
    fit(module, PROMPTS[:6], 6)
    expected = alone_on(folder, module.experience.rollouts)
    assert 0 < expected.isnan().sum() < len(expected)
    torch.testing.assert_close(module.experience.rewards["guest"], expected, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_what_cannot_share_is_one_line(llama, adapter, byte_tokenizer, tmp_path):
    retold = guest(tmp_path / "retold", llama)
    whole = json.loads((retold / "tokenizer.json").read_text())
    vocabulary = whole["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (retold / "tokenizer.json").write_text(json.dumps(whole))
    other = base(tmp_path / "other", byte_tokenizer, seed=1)
    cases = [
        (llama, True, shared(retold), "its tokenizer is another than that of base model"),
        (other, True, shared(adapter), "give both one base, or drop share"),
        (llama, False, shared(adapter), "only a policy with adapters"),
        (llama, True, shared(llama), "is no adapter, so it has a backbone of its own"),
        (llama, True, shared("grmlight.lab.GoldReward"), "there is no such folder of an adapter"),
    ]
    for on, adapted, source, words in cases:
        with pytest.raises(ValueError, match=words) as raised:
            fit(module_on(on, [source], adapted), PROMPTS[:6], 6)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="there is no policy whose backbone it could share"):
        open_rewards([shared(adapter)])


def train(out, *arguments, ranks=1, expect=0):
    Run(out, *map(str, arguments), ranks=ranks, program=main).wait(expect)


@pytest.fixture(scope="module")
def one_process(llama, adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    train(out, "--guest", f"{llama}:{adapter}")
    return out


@pytest.mark.parametrize("strategy", [[], ["--fsdp"]])
def test_two_ranks_have_the_losses_of_one(strategy, llama, adapter, one_process, tmp_path):
    train(tmp_path, "--guest", f"{llama}:{adapter}", *strategy, ranks=2)
    found, expected = losses(tmp_path), losses(one_process)
    assert len(expected) == 6
    for step, row in expected.items():
        for name in ("train/loss", "rollout/reward_guest", "rollout/kl"):
            assert found[step][name] == pytest.approx(row[name], rel=1e-5 * step, abs=1e-6 * step), (step, name)
    assert largest_difference(one_process, tmp_path) < 1e-4


def unreadable_for(limit, longest):
    """The ranks that have a longer text than this in the first iteration that has one."""
    for lengths in longest:
        if ranks := {place % 2 for place, length in enumerate(lengths) if length > limit}:
            return ranks
    return set()


def test_ranks_that_share_a_policy_fail_together(llama, tmp_path):
    """A text that one rank cannot read ends the run on both, instead of leaving the other to wait."""
    encoder, longest = TextEncoder(AutoTokenizer.from_pretrained(llama), PrepareOptions()), []
    for iteration in range(6):
        prompts = [str(number) for number in range(5 + 6 * iteration, 11 + 6 * iteration)]
        drawn = Canned().generate(prompts, SamplingOptions(samples=4), mixed_seed(0, iteration, 1), range(6))
        encoded = encoder.encode([rollout.text_group() for rollout in drawn.groups])
        longest.append([max(map(len, each.responses)) for each in encoded])
    limit = next(limit for limit in range(100) if len(unreadable_for(limit, longest)) == 1)
    adapter = guest(tmp_path / "reward", llama, read=PrepareOptions(max_length=limit, on_overlong="raise"))
    train(tmp_path / "run", "--guest", f"{llama}:{adapter}", "--fsdp", ranks=2, expect=1)
    for rank in range(2):
        assert "reward 'guest' failed (" in (tmp_path / "run" / f"output-{rank}.txt").read_text()
