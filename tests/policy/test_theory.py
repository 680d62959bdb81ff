"""RPO's theory on a bandit: the minimax problem and its reformulation, each solved for itself, have one policy."""

import numpy as np
import pytest
import torch

from grmlight.policy.objectives import AlignmentObjective, Anchor, comparison_loss, nll
from tests.batches import outputs_of, pair_batch

PAIRS = [(0, 1), (0, 2), (1, 2), (2, 3), (0, 3), (3, 1), (1, 2), (2, 0)]
"""Chosen and rejected of four responses to one prompt; they contradict each other here and there."""
REFERENCE = np.array([0.1, 0.4, 0.3, 0.2])


def empirical(pairs):
    """How often each response was chosen: the base distribution."""
    return np.bincount([chosen for chosen, _ in pairs], minlength=len(REFERENCE)) / len(pairs)


def softmax(values):
    values = np.exp(values - values.max())
    return values / values.sum()


def minimax_policy(beta, eta, base, steps=60_000, rate=0.05):
    """The saddle of `eta E[r(a1) - r(a0) - beta KL] + L_BT(r)`, by the extragradient method in logits and rewards."""
    chosen, rejected = np.array(PAIRS).T
    table = np.zeros((len(PAIRS), len(REFERENCE)))
    table[np.arange(len(PAIRS)), chosen] += 1
    table[np.arange(len(PAIRS)), rejected] -= 1

    def field(logits, rewards):
        policy = softmax(logits)
        gain = rewards - beta * (np.log(policy) - np.log(REFERENCE))
        up = eta * policy * (gain - policy @ gain)
        likelihood = -table.T @ (1 / (1 + np.exp(table @ rewards))) / len(PAIRS)
        return up, eta * (policy - base) + likelihood

    logits, rewards = np.log(REFERENCE), np.zeros(len(REFERENCE))
    for _ in range(steps):
        up, down = field(logits, rewards)
        up, down = field(logits + rate * up / eta, rewards - rate * down)
        logits, rewards = logits + rate * up / eta, np.clip(rewards - rate * down, -50, 50)
        if max(abs(up).max() / eta, abs(down).max()) < 1e-9:
            break
    assert abs(rewards).max() < 49  # inside the compact class, where the equivalence holds
    return softmax(logits)


def reformulated_policy(beta, eta, base):
    """The minimum of our RPO objective over all policies, on log-probs as a batch carries them."""
    objective = AlignmentObjective("rpo", beta=beta, anchor=Anchor(eta=eta))
    logits = torch.log(torch.tensor(REFERENCE)).requires_grad_()
    flat = [response for pair in PAIRS for response in pair]
    reference = np.log(REFERENCE)[flat].tolist()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        logps = logits.log_softmax(0)
        outputs = outputs_of([0.0] * len(flat), [0.0] * len(flat), reference)
        object.__setattr__(outputs, "logps_N", logps[flat])
        batch = pair_batch(len(PAIRS))
        pull = (nll(logps, pair_batch(2), False) * torch.tensor(base)).sum()
        total = comparison_loss(objective, outputs, batch).mean() + objective.anchor_weight * pull
        total.backward()
        return total

    optimizer.step(loss)
    return logits.detach().softmax(0).numpy()


@pytest.mark.parametrize("base", [empirical(PAIRS), REFERENCE], ids=["chosen", "reference"])
@pytest.mark.parametrize(("beta", "eta"), [(1.0, 0.5), (0.5, 0.2), (2.0, 1.0)])
def test_the_minimax_policy_is_the_reformulation_s(beta, eta, base):
    minimax, reformulated = minimax_policy(beta, eta, base), reformulated_policy(beta, eta, base)
    assert np.abs(minimax - reformulated).max() < 1e-6
    assert np.abs(minimax - REFERENCE).max() > 0.02


def test_another_eta_has_another_policy():
    """The comparison above has teeth."""
    base = empirical(PAIRS)
    assert np.abs(minimax_policy(1.0, 0.5, base) - reformulated_policy(1.0, 0.55, base)).max() > 1e-4
