"""OnlineModule on bandits that have an answer, and on everything that is wrong with rewards, prompts and samplers."""

import dataclasses
import logging
import math
import re

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from grmlight.models import Signal
from grmlight.policy.online.buffer import RolloutFiles, identity
from grmlight.policy.online.collect import Collector
from grmlight.policy.online.controllers import KlOptions
from grmlight.policy.online.mixing import KL, WeightedSum
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.online.options import Shaping, Update
from grmlight.policy.ranks import AllRanks
from grmlight.policy.rewards import RewardSource
from grmlight.policy.sampler import SamplingOptions
from grmlight.regularizers import ScoreL2
from grmlight.training.checkpoints import Checkpoints
from grmlight.training.resume import newest_checkpoint
from tests.policy.online.parts import Canned, OneToken, PromptBatch, arm_logps, digits, fit, small_backbone

ARMS = 32
WORTH = np.random.default_rng(0).normal(size=ARMS)
PROMPT = np.array([3, 0])


def worth(prompt: str, response: str) -> float:
    return float(WORTH[int(response)])


def bandit(seed, advantage="gae", where="reward", beta=0.3, **options):
    """A policy that was optimized against the worth of one-token answers."""
    module = OnlineModule(
        small_backbone(ARMS, num_hidden_layers=1),
        [worth],
        advantage=advantage,
        sampling=SamplingOptions(samples=256 if where == "loss" else 128),
        kl=KlOptions(coefficient=beta, where=where, estimator="k2"),
        update=Update(epochs=1 if where == "loss" else 2, spread="none", value_clip=None),
        seed=seed,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        schedule="linear",
        warmup_ratio=0.0,
        **options,
    )
    module._make_sampler = lambda: OneToken(module.model, ARMS)
    fit(module, ["0"] * (50 if where == "loss" else 25), 1)
    return module


def away(module, beta=0.3):
    """KL of the policy to the reference times exp(worth / beta), normalized, in nats."""
    now = arm_logps(module.model, PROMPT, ARMS).double()
    start = arm_logps(module.model, PROMPT, ARMS, reference=True).double()
    best = (start + torch.from_numpy(WORTH) / beta).log_softmax(0)
    assert (best.exp() * (best - start)).sum() > 1
    return float((now.exp() * (now - best)).sum())


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("advantage", "seed"),
    [("gae", 0), ("rloo", 0), ("grpo", 0)]
    + [pytest.param(each, seed, marks=SLOW) for each in ("gae", "rloo", "grpo") for seed in range(1, 5)],
)
def test_a_bandit_comes_to_its_optimum(advantage, seed):
    assert away(bandit(seed, advantage)) < 0.02


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=SLOW) for seed in range(1, 5))])
def test_with_the_coefficient_halved_it_does_not(seed):
    module = bandit(seed, beta=0.15)
    assert away(module) > 0.1
    assert away(module, beta=0.15) < 0.05


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_the_kl_in_the_loss_has_the_same_optimum(advantage):
    assert away(bandit(0, advantage, where="loss")) < 0.02


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_rewards_apart_and_mixed_by_their_sum_have_the_same_optimum(advantage):
    module = bandit(0, advantage, mixing=WeightedSum())
    assert away(module) < 0.02
    assert module.stream_names == [KL, "worth"]


def module_of(rewards, sampler=None, **options):
    settings = {"sampling": SamplingOptions(samples=4), "update": Update(minibatches=2)} | options
    module = OnlineModule(small_backbone(), rewards, **settings)
    module.sampler = sampler or Canned()
    return module


PROMPTS = [str(number) for number in range(24)]


def weights(module):
    return {name: tensor.clone() for name, tensor in module.model.state_dict().items()}


def test_an_answer_without_a_reward_teaches_nothing(caplog):
    """A reward that is NaN for some answers gives the weights of a run without these answers."""

    def partly(prompt, response):
        return math.nan if len(response.split()) < 4 else digits(prompt, response)

    class Fewer(Canned):
        def generate(self, prompts, options, seed, numbers=None):
            found = super().generate(prompts, options, seed, numbers)
            kept = [[answer for answer in group.answers if len(answer.text.split()) >= 4] for group in found.groups]
            assert all(len(each) > 1 for each in kept)
            assert any(len(each) < 6 for each in kept)
            groups = [type(g)(g.prompt, g.prompt_tokens, tuple(k)) for g, k in zip(found.groups, kept, strict=True)]
            return type(found)(tuple(groups), found.sampler, found.seconds)

    options = {"advantage": "rloo", "sampling": SamplingOptions(samples=6), "update": Update()}
    with caplog.at_level(logging.WARNING, "grmlight"):
        some = module_of([partly], Canned(longest=14), **options)
        trainer = fit(some, PROMPTS[:12], 6)
    assert "reward 'partly' is not finite for" in caplog.text
    assert trainer.callback_metrics["rollout/unscored"] > 0
    fewer = module_of([digits], Fewer(longest=14), **options)
    fit(fewer, PROMPTS[:12], 6)
    for name, tensor in weights(some).items():
        torch.testing.assert_close(tensor, weights(fewer)[name], atol=1e-6, rtol=1e-4)


def test_a_constant_reward_is_named_and_moves_nothing(caplog):
    def same(prompt, response):
        return 1.0

    module = module_of([same], advantage="rloo", kl=KlOptions(coefficient=0.0))
    with caplog.at_level(logging.WARNING, "grmlight"):
        fit(module, PROMPTS[:6], 6)
    assert caplog.text.count("reward 'same' is 1 for all 24 answers") == 1
    start = module_of([same], advantage="rloo")
    start.trainer = module.trainer
    start.configure_model()
    for name, tensor in weights(module).items():
        torch.testing.assert_close(tensor, weights(start)[name], rtol=0, atol=0)


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
        (math.nan, r"iteration 2: none of its 24 answers has a finite reward \(fails\)"),
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
    module._make_sampler = lambda: OneToken(module.model, ARMS)
    with pytest.raises(ValueError, match=r"exploded: .* of 24 answers above kl.limit 2"):
        checkpointed(module, tmp_path)
    assert newest_checkpoint(tmp_path, training=True) is not None


def test_a_policy_that_says_nothing_is_named(caplog):
    with caplog.at_level(logging.WARNING, "grmlight"):
        fit(module_of([digits], Canned(end_only=True)), PROMPTS[:6], 6)
    assert "all 24 answers are empty" in caplog.text
    assert "reward 'digits' is -1 for all 24 answers" in caplog.text


def test_prompts_that_are_too_long_are_left_out_and_named(caplog):
    module = module_of([digits])
    with caplog.at_level(logging.WARNING, "grmlight"):
        fit(module, ["long 1", *PROMPTS[:5]], 6)
    assert "the prompt 'long 1' is left out: too long" in caplog.text
    assert len(module.experience.rollouts) == 5
    with pytest.raises(ValueError, match="none of its 6 prompts can be answered"):
        fit(module_of([digits]), ["long"] * 6, 6)


def test_a_sampler_that_gives_no_token_is_refused():
    class Silent(Canned):
        def generate(self, prompts, options, seed, numbers=None):
            found = super().generate(prompts, options, seed, numbers)
            groups = [type(g)(g.prompt, g.prompt_tokens, ()) for g in found.groups]
            return type(found)(tuple(groups), found.sampler, found.seconds)

    with pytest.raises(
        ValueError, match="sampler 'canned' gave answers of no token: 6 of 0, the first to prompt 1, '0'"
    ):
        fit(module_of([digits], Silent()), PROMPTS[:6], 6)


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
    assert identity(digits) == "tests.policy.online.parts.digits" == identity("tests.policy.online.parts.digits")


def test_sampling_from_another_distribution_is_told_of_once(caplog):
    options = SamplingOptions(samples=4, temperature=0.7, top_k=20)
    with caplog.at_level(logging.INFO):
        fit(module_of([digits], sampling=options), PROMPTS[:12], 6)
    assert [caplog.text.count(f"sampling.{name} is") for name in ("temperature", "top_k", "top_p")] == [1, 1, 0]
    assert caplog.text.count("answers are sampled by canned") == 1
    assert len(re.findall(r"sampler canned: 0\.0 of [\d.]+ s in iterations were sampling, \d+%", caplog.text)) == 1


def test_answers_that_were_cut_off_pay_for_it():
    free, paying = module_of([digits]), module_of([digits], shaping=Shaping(cut_penalty=2.0))
    for module in (free, paying):
        fit(module, PROMPTS[:6], 6)
    ended = [answer.ended for rollout in free.experience.rollouts for answer in rollout.answers]
    expected = free.experience.scores_N - torch.tensor([0.0 if each else 2.0 for each in ended]).double()
    torch.testing.assert_close(paying.experience.scores_N, expected)


def test_scores_are_whitened_and_clipped_if_asked():
    module = module_of([digits], shaping=Shaping(whiten=True, clip=1.0))
    fit(module, PROMPTS[:6], 6)
    raw = module.experience.rewards["digits"]
    white = (raw - raw.mean()) / (raw.var(correction=0) + 1e-8).sqrt()
    torch.testing.assert_close(module.experience.scores_N, white.clamp(-1, 1))


def test_a_watched_reward_is_logged_and_changes_nothing():
    alone, watched = module_of([digits]), module_of([digits], watch=[len_of])
    fit(alone, PROMPTS, 6)
    trainer = fit(watched, PROMPTS, 6)
    assert trainer.callback_metrics["rollout/watch_len_of"] > 1
    for name, tensor in weights(alone).items():
        assert torch.equal(tensor, weights(watched)[name]), name


def len_of(prompt: str, response: str) -> float:
    return float(len(response.split()))


def test_minibatches_without_prompts_are_still_steps():
    trainer = fit(module_of([digits], update=Update(epochs=2, minibatches=5)), PROMPTS[:6], 3)
    assert trainer.global_step == 20


def test_the_learning_rate_runs_over_all_optimizer_steps():
    module = module_of([digits], update=Update(epochs=3, minibatches=2), schedule="linear", warmup_ratio=0.0)
    trainer = fit(module, PROMPTS, 6)
    assert trainer.global_step == 24
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rewards": []}, "there is no reward"),
        ({"advantage": "a2c"}, "advantage"),
        ({"advantage": "grpo", "sampling": SamplingOptions(samples=1)}, "sampling.samples to 2"),
        ({"mixing": WeightedSum(), "shaping": Shaping(whiten=True)}, "drop shaping"),
        ({"mixing": WeightedSum(), "kl": KlOptions(where="loss")}, "kl.where"),
    ],
)
def test_options_that_do_not_go_together(options, words):
    with pytest.raises(ValueError, match=words):
        OnlineModule(small_backbone(), **({"rewards": [digits]} | options))


def test_two_rewards_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two rewards are named 'digits'"):
        fit(module_of([digits, digits]), PROMPTS[:6], 6)


def test_regularizers_and_the_trainers_own_clipping_are_refused():
    with pytest.raises(ValueError, match="score_l2: regularizers are for pairs"):
        fit(module_of([digits]), PROMPTS[:6], 6, callbacks=[ScoreL2(0.1)])
    with pytest.raises(MisconfigurationException, match="gradient clipping"):
        fit(module_of([digits]), PROMPTS[:6], 6, gradient_clip_val=1.0)


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_a_loss_that_is_not_finite(on_nonfinite):
    """The weights that a bad step would have made never come to be."""

    class Poisoned(OnlineModule):
        def _advantages(self, experience, told, chosen):
            found_L = super()._advantages(experience, told, chosen)
            return found_L * math.nan if self.global_step == 3 else found_L

    module = Poisoned(small_backbone(), [digits], sampling=SamplingOptions(samples=4), on_nonfinite=on_nonfinite)
    module.sampler = Canned()
    if on_nonfinite == "stop":
        with pytest.raises(ValueError, match="not finite"):
            fit(module, PROMPTS, 4)
        return
    fit(module, PROMPTS, 4)
    assert module.meter.skipped == 1
    assert all(tensor.isfinite().all() for tensor in weights(module).values())


def test_the_module_asks_for_no_more_than_it_needs():
    assert module_of([digits], advantage="rloo")._signals == {Signal.LOGPS}
    assert module_of([RewardSource("tests.policy.online.parts.digits", "near")])._signals == {
        Signal.LOGPS,
        Signal.VALUES,
    }
