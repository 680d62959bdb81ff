"""Held-out prompts: their figures are those of their answers, and looking at them changes nothing."""

import math

import numpy as np
import pytest
import torch

from grmlight.models import Signal, evaluating
from grmlight.policy.online.mixing import WeightedSum
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.online.options import Shaping, Update
from grmlight.policy.prompts import PromptLoader
from grmlight.policy.rollouts import Rollouts
from grmlight.policy.sampler import SamplingOptions
from grmlight.training.checkpoints import Checkpoints
from grmlight.training.seeding import mixed_seed
from tests.policy.online.parts import Canned, PromptData, digits, small_backbone
from tests.policy.online.parts import fit as fit_without

PROMPTS, HELD_OUT = [str(number) for number in range(24)], [str(number) for number in range(100, 110)]


class WithHeldOut(PromptData):
    sets = ("train", "val")

    def val_dataloader(self):
        return PromptLoader(HELD_OUT, [1] * 10, 4, None, self.trainer.global_rank, self.trainer.world_size)


def partly(prompt, response):
    return math.nan if len(response.split()) == 3 else float(len(response.split()))


def module_of(**options):
    module = OnlineModule(
        small_backbone(),
        [digits, partly],
        **{"watch": [length], "sampling": SamplingOptions(samples=4), "update": Update(minibatches=2)} | options,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        warmup_ratio=0.0,
    )
    module.sampler = Canned()
    return module


def length(prompt, response):
    return float(len(response))


def fit(module, monkeypatch, **trainer):
    monkeypatch.setattr("tests.policy.online.parts.PromptData", WithHeldOut)
    return fit_without(module, PROMPTS, 6, limit_val_batches=1.0, **trainer)


def test_the_figures_are_means_over_one_answer_to_each_prompt(monkeypatch):
    module = module_of(shaping=Shaping(whiten=True, cut_penalty=3.0))
    found = fit(module, monkeypatch).callback_metrics
    answers, kl = [], []
    for batch, first in enumerate(range(0, 10, 4)):
        prompts = HELD_OUT[first : first + 4]
        seed = mixed_seed(module.seed, batch, 0)
        drawn: Rollouts = Canned().generate(prompts, SamplingOptions(), seed, range(len(prompts)))
        answers += [(group.prompt, group.answers[0]) for group in drawn.groups]
        with torch.no_grad(), evaluating(module.model):
            outputs = module.model(drawn.batch(), frozenset({Signal.LOGPS, Signal.REFERENCE_LOGPS}))
        kl += (outputs.logps_N - outputs.reference_logps_N).tolist()
    near = [digits(prompt, answer.text) for prompt, answer in answers]
    words = [partly(prompt, answer.text) for prompt, answer in answers]
    expected = {
        "val/reward_digits": np.mean(near),
        "val/reward_partly": np.nanmean(words),
        "val/watch_length": np.mean([len(answer.text) for _, answer in answers]),
        "val/score": np.nanmean((np.array(near) + words) / 2),
        "val/kl": np.mean(kl),
        "val/tokens": np.mean([len(answer.tokens) for _, answer in answers]),
        "val/ended": np.mean([answer.ended for _, answer in answers]),
        "val/unscored": np.mean(np.isnan(words)),
    }
    assert 0 < expected["val/unscored"] < 1
    assert abs(expected["val/kl"]) > 0.01
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_rewards_that_are_mixed_have_no_score(monkeypatch):
    found = fit(module_of(mixing=WeightedSum()), monkeypatch).callback_metrics
    assert "val/score" not in found
    assert "val/reward_digits" in found


@pytest.mark.parametrize("sanity", [0, 2])
def test_validation_changes_nothing(sanity, monkeypatch):
    alone, looking = module_of(), module_of()
    fit_without(alone, PROMPTS, 6)
    fit(looking, monkeypatch, val_check_interval=1, num_sanity_val_steps=sanity)
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(looking.model.state_dict()[name], tensor), name


def test_the_best_checkpoint_is_that_of_the_best_held_out_figure(monkeypatch, tmp_path):
    class Seen(Checkpoints):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.seen = {}

        def on_validation_end(self, trainer, pl_module):
            super().on_validation_end(trainer, pl_module)
            if not trainer.sanity_checking:
                self.seen[trainer.global_step] = float(trainer.callback_metrics["val/kl"])

    callback = Seen(tmp_path, monitor="val/kl", mode="min", every_n_epochs=1, save_on_train_epoch_end=False)
    fit(module_of(), monkeypatch, val_check_interval=1, callbacks=[callback], enable_checkpointing=True)
    assert len(callback.seen) == 4
    best = min(callback.seen, key=lambda step: callback.seen[step])
    assert torch.load(callback.best_model_path, weights_only=True)["global_step"] == best
