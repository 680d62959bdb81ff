"""Advantages against loops that are plain Python in float64."""

import math

import numpy as np
import pytest
import torch

from grmlight.policy.online.advantages import (
    gae,
    group_normalized,
    leave_one_out,
    padded,
    rewards_to_go,
    unpadded,
    whiten,
)

LENGTHS = [1, 4, 2, 7, 3]


def draw(seed):
    random = np.random.default_rng(seed)
    return [list(random.normal(size=length)) for length in LENGTHS], [list(random.normal(size=n)) for n in LENGTHS]


def flat(rows):
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


TOKENS = torch.tensor(LENGTHS)


def gae_loop(rewards, values, gamma, lam):
    """Sums of discounted deltas, as the paper writes them."""
    advantages = []
    for t in range(len(rewards)):
        total = 0.0
        for later in range(t, len(rewards)):
            following = values[later + 1] if later + 1 < len(rewards) else 0.0
            total += (gamma * lam) ** (later - t) * (rewards[later] + gamma * following - values[later])
        advantages.append(total)
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 0.9), (1.0, 1.0), (0.9, 0.0)])
def test_gae_equals_the_papers_sum(gamma, lam):
    rewards, values = draw(0)
    expected = flat([gae_loop(*each, gamma, lam) for each in zip(rewards, values, strict=True)])
    torch.testing.assert_close(gae(flat(rewards), flat(values), TOKENS, gamma, lam), expected, rtol=0, atol=1e-12)


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    rewards, values = draw(1)
    expected = rewards_to_go(flat(rewards), TOKENS, 0.97) - flat(values)
    torch.testing.assert_close(gae(flat(rewards), flat(values), TOKENS, 0.97, 1.0), expected)


def test_rewards_to_go_equal_a_loop():
    rewards, _ = draw(2)
    expected = [
        [sum(0.9 ** (later - t) * row[later] for later in range(t, len(row))) for t in range(len(row))]
        for row in rewards
    ]
    torch.testing.assert_close(rewards_to_go(flat(rewards), TOKENS, 0.9), flat(expected))


def test_nothing_crosses_from_one_answer_to_the_next():
    rewards, values = draw(3)
    whole = gae(flat(rewards), flat(values), TOKENS, 0.99, 0.9).split(LENGTHS)
    for row, value, found in zip(rewards, values, whole, strict=True):
        alone = gae(flat([row]), flat([value]), torch.tensor([len(row)]), 0.99, 0.9)
        torch.testing.assert_close(found, alone)


def test_padding_comes_off_again():
    values_L = torch.arange(float(sum(LENGTHS)))
    assert padded(values_L, TOKENS).shape == (5, 7)
    assert torch.equal(unpadded(padded(values_L, TOKENS), TOKENS), values_L)


GROUP = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
SCORES = torch.tensor([1.0, 2.5, -1.0, 0.5, math.nan, 3.0, math.nan, math.nan], dtype=torch.float64)


def peers(number):
    """The known scores of an answer's group, and those of the others in it."""
    same = [n for n in range(len(SCORES)) if GROUP[n] == GROUP[number] and not math.isnan(SCORES[n])]
    return [float(SCORES[n]) for n in same], [float(SCORES[n]) for n in same if n != number]


def test_leave_one_out_equals_a_loop():
    found = leave_one_out(SCORES, GROUP)
    for number, score in enumerate(SCORES.tolist()):
        _, others = peers(number)
        expected = score * 0 if not others else score - sum(others) / len(others)
        assert found[number] == pytest.approx(expected, nan_ok=True)


def test_group_normalization_equals_a_loop():
    found = {spread: group_normalized(SCORES, GROUP, spread) for spread in ("group", "batch", "none")}
    known = [n for n in range(len(SCORES)) if not math.isnan(SCORES[n])]
    centered = {n: float(SCORES[n]) - float(np.mean(peers(n)[0])) for n in known}
    batch = float(np.std(list(centered.values()), ddof=1))
    for number in range(len(SCORES)):
        if number not in known:
            assert all(math.isnan(values[number]) for values in found.values())
            continue
        own = float(np.std(peers(number)[0], ddof=1)) if len(peers(number)[0]) > 1 else 0.0
        assert found["none"][number] == pytest.approx(centered[number])
        assert found["group"][number] == pytest.approx(centered[number] / (own + 1e-4))
        assert found["batch"][number] == pytest.approx(centered[number] / (batch + 1e-4))


def test_a_constant_reward_gives_no_advantage():
    scores = torch.full((4,), 2.0, dtype=torch.float64)
    group = torch.tensor([0, 0, 1, 1])
    assert not leave_one_out(scores, group).any()
    for spread in ("group", "batch", "none"):
        assert not group_normalized(scores, group, spread).any()
    assert not whiten(scores, torch.ones(4, dtype=torch.bool)).any()


def test_whitening_looks_at_the_known_values_alone():
    values = torch.tensor([1.0, 5.0, 3.0, 1e9], dtype=torch.float64)
    known = torch.tensor([True, True, True, False])
    white = whiten(values, known)[:3]
    assert white.mean() == pytest.approx(0, abs=1e-12)
    assert white.var(correction=0) == pytest.approx(1)
    assert whiten(values, known, center=False)[:3].mean() == pytest.approx(3)
