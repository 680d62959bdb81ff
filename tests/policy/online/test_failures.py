"""Runs that a reward, a sampler or a KL ends: what they leave, and how they go on."""

import dataclasses
import math
import re

import pytest
import torch

from grmlight.policy.online.buffer import RolloutFiles, identity
from grmlight.policy.online.collect import Collector
from grmlight.policy.online.controllers import KlOptions
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.ranks import AllRanks
from grmlight.policy.rewards import RewardSource
from grmlight.policy.sampler import SamplingOptions
from grmlight.training.checkpoints import Checkpoints
from grmlight.training.resume import newest_checkpoint
from tests.policy.online.parts import (
    PROMPTS,
    Canned,
    OneToken,
    PromptBatch,
    digits,
    fit,
    module_of,
    small_backbone,
    weights,
)
from tests.policy.online.test_bandits import ARMS, worth


def checkpointed(module, folder, prompts=PROMPTS, every=2, **options):
    callback = Checkpoints(folder / "checkpoints", every_n_train_steps=every, save_last=True)
    return fit(module, prompts, 6, callbacks=[callback], enable_checkpointing=True, **options)


class Fails:
    """A reward that fails once."""

    name = "fails"

    def __init__(self, at, failure):
        self.at, self.failure, self.calls = at, failure, 0

    def score(self, groups):
        self.calls += 1
        if self.calls == self.at:
            if isinstance(self.failure, Exception):
                raise self.failure
            return [[self.failure] * len(group.responses) for group in groups]
        return [[digits("", response) for response in group.responses] for group in groups]


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (RuntimeError("the endpoint is gone"), r"reward 'fails' failed \(RuntimeError: the endpoint is gone\)"),
        (math.nan, r"iteration 2: none of its 24 answers has a finite reward \(finite: fails 0\)"),
    ],
)
def test_a_reward_that_fails_leaves_a_checkpoint_and_its_answers(failure, words, tmp_path):
    """Once it is mended, the run goes on with the answers that it has, as if nothing had happened."""
    with pytest.raises(ValueError, match=words):
        checkpointed(module_of([Fails(3, failure)]), tmp_path)
    found = newest_checkpoint(tmp_path, training=True)
    assert torch.load(found, weights_only=True)["global_step"] == 4
    again = module_of([Fails(0, None)])
    trainer = checkpointed(again, tmp_path, ckpt_path=found)
    assert trainer.global_step == 8
    assert again.iterations == 4
    assert again.sampler.calls == 1
    whole = module_of([Fails(0, None)])
    fit(whole, PROMPTS, 6)
    for name, tensor in weights(again).items():
        assert torch.equal(tensor, weights(whole)[name]), name


EPOCHS = 2


@pytest.fixture(scope="module")
def whole():
    """Two epochs of four iterations, which nothing stopped."""
    module = module_of([Fails(0, None)])
    fit(module, PROMPTS, 6, epochs=EPOCHS)
    return weights(module)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("limits", [{"every": 2}, {"every": 100}, {"every": 100, "max_steps": 16}], ids=str)
@pytest.mark.parametrize("at", [1, 2, 4, 5, 8])
def test_wherever_an_iteration_fails_it_alone_is_done_again(at, limits, whole, tmp_path):
    """At the first, a middle and the last batch of an epoch, with a checkpoint of the step before it or without."""
    options = {"epochs": EPOCHS} | limits
    with pytest.raises(ValueError, match="has a finite reward"):
        checkpointed(module_of([Fails(at, math.nan)]), tmp_path, **options)
    found = newest_checkpoint(tmp_path, training=True)
    with pytest.raises(ValueError, match="has a finite reward"):
        checkpointed(module_of([Fails(1, math.nan)]), tmp_path, ckpt_path=found, **options)
    found = newest_checkpoint(tmp_path, training=True)
    assert torch.load(found, weights_only=True)["global_step"] == 2 * (at - 1)
    again = module_of([Fails(0, None)])
    trainer = checkpointed(again, tmp_path, ckpt_path=found, **options)
    assert (again.iterations, trainer.global_step) == (8, 16)
    for name, tensor in weights(again).items():
        assert torch.equal(tensor, whole[name]), name


def test_a_kl_that_explodes_is_counted_and_leaves_a_checkpoint(tmp_path):
    module = OnlineModule(
        small_backbone(ARMS, num_hidden_layers=1),
        [worth],
        sampling=SamplingOptions(samples=4),
        kl=KlOptions(coefficient=0.0, limit=2.0),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1.0),
        warmup_ratio=0.0,
    )
    module.make_sampler = lambda: OneToken(module.model, ARMS)
    with pytest.raises(ValueError, match=r"exploded: .* of 24 answers above kl.limit 2"):
        checkpointed(module, tmp_path)
    assert newest_checkpoint(tmp_path, training=True) is not None


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_an_answer_of_no_token_costs_its_own_prompt_alone(tmp_path):
    """It is counted and named; with the sampler mended, the other prompts' answers are not drawn again."""
    asked = []

    class Counting(Canned):
        def generate(self, prompts, options, seed, numbers=None):
            asked.append(list(prompts))
            return super().generate(prompts, options, seed, numbers)

    class Once(Counting):
        def generate(self, prompts, options, seed, numbers=None):
            found = super().generate(prompts, options, seed, numbers)
            third = found.groups[2]
            nothing = dataclasses.replace(third.answers[0], tokens=third.answers[0].tokens[:0], text="")
            bad = dataclasses.replace(third, answers=(nothing, *third.answers[1:]))
            return dataclasses.replace(found, groups=(*found.groups[:2], bad, *found.groups[3:]))

    with pytest.raises(ValueError, match="no token: 1 of 24, the first to prompt 3, '2'"):
        checkpointed(module_of([digits], Once()), tmp_path, PROMPTS[:6])
    again = module_of([digits], Counting())
    checkpointed(again, tmp_path, PROMPTS[:6], ckpt_path=newest_checkpoint(tmp_path, training=True))
    assert asked == [PROMPTS[:6], ["2"]]
    whole = module_of([digits])
    fit(whole, PROMPTS[:6], 6)
    for name, tensor in weights(again).items():
        assert torch.equal(tensor, weights(whole)[name]), name


class Paid:
    """A reward that counts what it was asked."""

    name = "paid"

    def __init__(self):
        self.asked = 0

    def score(self, groups):
        self.asked += sum(len(group.responses) for group in groups)
        return [[digits("", response) for response in group.responses] for group in groups]


class Other(Paid):
    """Another reward of the same name."""


def collector(folder, rewards):
    files = RolloutFiles(folder, {name: identity(scorer) for name, scorer in rewards.items()})
    return Collector(Canned(), SamplingOptions(samples=3), rewards, AllRanks(), files, print)


def test_what_was_paid_for_is_kept_when_a_later_reward_fails(tmp_path):
    paid, batch = Paid(), PromptBatch(("x", "y"), (0, 1), (1, 1))
    with pytest.raises(ValueError, match="reward 'fails' failed"):
        collector(tmp_path, {"paid": paid, "fails": Fails(1, RuntimeError("gone"))}).collect(batch, 0, "key", 0)
    kept, _ = collector(tmp_path, {"paid": paid, "fails": Fails(0, None)}).collect(batch, 0, "key", 0)
    assert paid.asked == 6
    assert kept.rewards.keys() == {"paid", "fails"}
    other = Other()
    collector(tmp_path, {"paid": other}).collect(batch, 0, "key", 0)
    assert other.asked == 6


def test_a_folder_with_other_weights_is_another_reward(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("first")
    before = identity(RewardSource(str(tmp_path), "proxy"))
    assert identity(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_text("the second one")
    assert identity(str(tmp_path)) != before
    path = "tests.policy.online.parts.digits"
    assert identity(digits) == path
    # The code, too: a function that was mended is another one.
    assert re.fullmatch(rf"{path} [0-9a-f]{{64}}", identity(path))
