"""OnlineModule on bandits, whose optimum is known."""

import numpy as np
import pytest
import torch

from grmlight.policy.online.controllers import KlOptions
from grmlight.policy.online.mixing import KL, WeightedSum
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.online.options import Update
from grmlight.policy.sampler import SamplingOptions
from tests.policy.online.parts import OneToken, arm_logps, fit, small_backbone

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
    module.make_sampler = lambda: OneToken(module.model, ARMS)
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
