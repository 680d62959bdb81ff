"""OnlineModule with rewards, prompts, samplers and options that are unusual or wrong."""

import logging
import math
import re

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from grmlight.models import Signal
from grmlight.policy.online.controllers import KlOptions
from grmlight.policy.online.mixing import WeightedSum
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.online.options import Shaping, Update
from grmlight.policy.rewards import RewardSource
from grmlight.policy.sampler import SamplingOptions
from grmlight.regularizers import ScoreL2
from tests.policy.online.parts import PROMPTS, Canned, digits, fit, module_of, small_backbone, weights


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
    with pytest.raises(ValueError, match="score_l2: OnlineModule takes no regularizers"):
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
