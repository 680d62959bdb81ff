"""The loss of a step against TRL's own GRPO and RLOO losses, on the same log-probs, advantages and masks."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from grmlight.data.encode import TokenGroup, pack
from grmlight.models import Outputs
from grmlight.policy.online.controllers import KlOptions
from grmlight.policy.online.minibatches import token_weights
from grmlight.policy.online.objective import Targets, terms
from grmlight.policy.online.options import Update

LENGTHS = [3, 1, 6, 4]
BETA, CLIP = 0.3, 0.2


def material():
    """Log-probs of the policy, of the one that sampled and of the reference, and an advantage for each answer."""
    draw = np.random.default_rng(0)
    new, old, reference = (torch.from_numpy(draw.normal(-2, 0.4, sum(LENGTHS))).float() for _ in range(3))
    return new.requires_grad_(), old, reference, torch.from_numpy(draw.normal(size=4)).float()


def ours(update, kl):
    new, old, reference, advantages = material()
    tokens_N = torch.tensor(LENGTHS)
    batch = pack([TokenGroup(tuple(np.arange(5, 7 + length) for length in LENGTHS), (2,) * 4)])
    known_N = torch.ones(4, dtype=torch.bool)
    weight_L, even_L = (token_weights(tokens_N, known_N, each).float() for each in (update.average, "tokens"))
    advantage_L = torch.repeat_interleave(advantages, tokens_N)
    target = Targets(weight_L, even_L, advantage_L, old, reference)
    found = terms(Outputs(new.new_zeros(4), logps_L=new), batch, target, update, kl, BETA)
    found["loss"].backward()
    return found["loss"].item(), new.grad


def rows(flat):
    found = flat.new_zeros(4, max(LENGTHS))
    for row, values in enumerate(flat.split(LENGTHS)):
        found[row, : len(values)] = values
    return found


def theirs(trainer, beta, loss_type):
    """TRL's loss function on a stand-in for its trainer, whose model has said these log-probs already."""
    new, old, reference, advantages = material()
    mask = rows(torch.ones(sum(LENGTHS)))
    accelerator = SimpleNamespace(
        reduce=lambda value, **_: value, gather=lambda value: value, gather_for_metrics=lambda v: v, num_processes=1
    )
    stand_in = SimpleNamespace(
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        beta=beta,
        importance_sampling_level="token",
        loss_type=loss_type,
        epsilon_low=CLIP,
        epsilon_high=CLIP,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        _entropy_bonus_enabled=False,
        use_adaptive_entropy=False,
        current_gradient_accumulation_steps=1,
        entropy_coef=0.0,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (rows(new), torch.zeros_like(mask), None),
    )
    ids = torch.zeros(4, max(LENGTHS), dtype=torch.int64)
    old_logps = rows(old) if trainer is GRPOTrainer else (rows(old) * mask).sum(1)
    inputs = {"prompt_ids": ids[:, :2], "prompt_mask": ids[:, :2] + 1, "completion_ids": ids, "completion_mask": mask}
    inputs |= {"advantages": advantages, "old_per_token_logps": old_logps, "old_logps": old_logps}
    inputs |= {"ref_per_token_logps": rows(reference)}
    loss = trainer._compute_loss(stand_in, None, inputs)
    loss.backward()
    return loss.item(), new.grad


@pytest.mark.parametrize(
    ("update", "kl", "trainer", "beta", "loss_type"),
    [
        (Update(ratio="token", average="answers"), KlOptions(where="loss"), GRPOTrainer, BETA, "grpo"),
        (Update(ratio="token", average="tokens"), KlOptions(), GRPOTrainer, 0.0, "bnpo"),
        (Update(ratio="answer", average="answers"), KlOptions(), RLOOTrainer, 0.0, ""),
    ],
    ids=["grpo", "ppo as bnpo", "rloo"],
)
def test_losses_and_gradients_are_trls(update, kl, trainer, beta, loss_type):
    (loss, gradient), (expected, slope) = ours(update, kl), theirs(trainer, beta, loss_type)
    assert loss == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)
