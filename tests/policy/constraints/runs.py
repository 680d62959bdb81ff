"""Constrained runs of a tiny policy that answers with one token."""

import lightning.pytorch as L
import torch

from grmlight.policy.constraints import Constraints
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.online.options import Update
from grmlight.policy.sampler import SamplingOptions
from tests.policy.online.parts import OneToken, fit, small_backbone

VOCABULARY = 101
SAMPLES = 32


def odd(prompt, response):
    """Half of the tokens are worth something."""
    return float(int(response) % 2)


def low(prompt, response):
    """So is another half."""
    return float(int(response) < VOCABULARY // 2)


class Hump:
    """An evaluation that wants 0.6 of the answers to be odd; counts the answers that it was asked for."""

    name, asked = "hump", 0

    def score(self, groups):
        Hump.asked += sum(len(group.responses) for group in groups)
        return [[-((odd("", text) - 0.6) ** 2) - 0.1 * low("", text) for text in group.responses] for group in groups]


class Draw(L.Callback):
    """Lets the policy answer with one token; stops behind an iteration if asked to."""

    def __init__(self, stop_after=None):
        self.stop_after, self.seen = stop_after, []

    def on_train_start(self, trainer, pl_module):
        pl_module.sampler = OneToken(pl_module.model, VOCABULARY)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        if pl_module.iterations == self.stop_after:
            trainer.should_stop = True


def module(mixing, rewards=(odd,), lr=3e-3, **update):
    return OnlineModule(
        small_backbone(VOCABULARY),
        rewards=list(rewards),
        mixing=mixing,
        sampling=SamplingOptions(samples=SAMPLES, max_new_tokens=1),
        update=Update(**update),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        schedule="constant",
        warmup_ratio=0.0,
    )


def run(mixing, iterations, callbacks=(), rewards=(odd,), stop_after=None, prompts_per_step=1, **options):
    """Train; the module, and the figures of each iteration."""
    update = options.pop("update", {})
    draw = Draw(stop_after)
    trained = module(mixing, rewards, options.pop("lr", 3e-3), **update)
    prompts = ["4", "5"] * (iterations * prompts_per_step)
    fit(trained, prompts[: iterations * prompts_per_step], prompts_per_step, callbacks=[draw, *callbacks], **options)
    return trained, draw.seen


def weights(trained):
    return {name: each.detach().clone() for name, each in trained.named_parameters() if each.requires_grad}


def constraints(**thresholds):
    return Constraints(thresholds or {"odd": 0.8}, "xi")
