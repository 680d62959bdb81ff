"""Win, tie and loss against counting one pair at a time; intervals against a bootstrap that is a loop."""

import itertools
import math

import numpy as np
import pytest
import torch

from grmlight.policy.winrate.figures import RIDGE, Judged, controlled, figures, position, shares


def random_pairs(prompts=12, most=4, seed=0, replies=("A", "B", "=")):
    draw = np.random.default_rng(seed)
    return [
        Judged(int(prompt), *map(str, draw.choice(replies, 2)), *(int(each) for each in draw.integers(1, 60, 2)))
        for prompt in range(prompts)
        for _ in range(draw.integers(1, most + 1))
    ]


@pytest.mark.parametrize(
    ("forward", "backward", "outcome"),
    [
        ("A", "B", 1.0),
        ("B", "A", 0.0),
        *((f, b, 0.5) for f, b in itertools.product("AB=", repeat=2) if {f, b} != {"A", "B"}),
    ],
)
def test_a_pair_is_won_only_if_both_orders_say_so(forward, backward, outcome):
    assert Judged(0, forward, backward, 1, 1).outcome == outcome


def test_shares_are_counts():
    pairs = random_pairs()
    found = shares(pairs, 50, 0)
    wins = sum(each.forward == "A" and each.backward == "B" for each in pairs)
    losses = sum(each.forward == "B" and each.backward == "A" for each in pairs)
    assert (found.win.value, found.loss.value) == (wins / len(pairs), losses / len(pairs))
    assert found.tie.value == pytest.approx(1 - found.win.value - found.loss.value, abs=1e-12)
    assert found.rate.value == pytest.approx(found.win.value + found.tie.value / 2, abs=1e-12)
    assert (found.pairs, found.prompts) == (len(pairs), 12)


def loop_interval(pairs, value, draws, seed):
    """Whole prompts drawn with replacement, one draw at a time."""
    prompts = sorted({each.prompt for each in pairs})
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = generator.integers(len(prompts), size=len(prompts))
        found.append(value([each for number in drawn for each in pairs if each.prompt == prompts[number]]))
    return np.percentile(found, [2.5, 97.5])


def test_intervals_draw_whole_prompts():
    pairs = random_pairs(seed=3)
    found = shares(pairs, 200, 7)
    for name, test in (
        ("win", lambda each: each.outcome == 1),
        ("tie", lambda each: each.outcome == 0.5),
        ("rate", lambda each: each.outcome),
    ):
        low, high = loop_interval(pairs, lambda drawn, test=test: sum(map(test, drawn)) / len(drawn), 200, 7)
        figure = getattr(found, name)
        assert (figure.low, figure.high) == pytest.approx((low, high), abs=1e-12), name
        assert figure.low < figure.value < figure.high


def test_answers_to_one_prompt_are_no_independent_evidence():
    """The same pairs, once as prompts of their own and once as one prompt's forty copies."""
    apart = [Judged(number, *(("A", "B") if number % 2 else ("B", "A")), 5, 5) for number in range(40)]
    copies = [each._replace(prompt=number // 10) for number, each in enumerate(sorted(apart, key=lambda e: e.outcome))]
    width = [found.rate.high - found.rate.low for found in (shares(apart, 500, 0), shares(copies, 500, 0))]
    assert width[1] > 2 * width[0]


def test_a_single_prompt_has_no_interval():
    found = shares([Judged(4, "A", "B", 1, 1)] * 3, 50, 0)
    assert found.win.value == 1
    assert math.isnan(found.win.low)


def test_the_first_place_is_counted():
    pairs = random_pairs(seed=5)
    found = position(pairs, 100, 0)
    replies = [reply for each in pairs for reply in (each.forward, each.backward) if reply != "="]
    assert found.first.value == pytest.approx(replies.count("A") / len(replies))
    assert found.both_first == sum((each.forward, each.backward) == ("A", "A") for each in pairs)
    assert found.both_second == sum((each.forward, each.backward) == ("B", "B") for each in pairs)
    same = sum((each.forward, each.backward) in (("A", "B"), ("B", "A"), ("=", "=")) for each in pairs)
    assert found.agreed.value == pytest.approx(same / len(pairs))
    low, high = loop_interval(
        pairs,
        lambda drawn: (
            sum((e.forward == "A") + (e.backward == "A") for e in drawn)
            / sum((e.forward != "=") + (e.backward != "=") for e in drawn)
        ),
        100,
        0,
    )
    assert (found.first.low, found.first.high) == pytest.approx((low, high), abs=1e-12)


def test_matched_lengths_are_within_the_ratio():
    pairs = [Judged(n, "A", "B", length, other) for n, (length, other) in enumerate([(10, 11), (11, 10), (10, 12)])]
    found = figures([*pairs, Judged(9, "B", "A", 0, 0), Judged(8, None, "A", 5, 5)], 1.1, 20)
    assert (found.matched.pairs, found.raw.pairs, found.unread) == (3, 4, 1)
    assert found.matched.win.value == pytest.approx(2 / 3)
    assert found.length == pytest.approx(36 / 5)


def slow_rate(pairs, weights=None):
    """The regression by a general optimizer."""
    gap = np.array([each.length - each.other for each in pairs], float)
    slope = torch.from_numpy(np.tanh(gap / gap.std()))
    outcome = torch.tensor([each.outcome for each in pairs], dtype=torch.float64)
    weights = torch.ones(len(pairs)) if weights is None else torch.from_numpy(weights)
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        logit = parameters[0] + parameters[1] * slope
        terms = torch.nn.functional.binary_cross_entropy_with_logits(logit, outcome, reduction="none")
        total = (weights * terms).sum() + RIDGE / 2 * (parameters**2).sum()
        total.backward()
        return total

    optimizer.step(loss)
    return float(parameters[0].detach().sigmoid())


@pytest.mark.parametrize("seed", range(4))
def test_the_length_controlled_rate_is_the_regressions(seed):
    pairs = random_pairs(prompts=30, seed=seed)
    assert controlled(pairs, 10, 0).value == pytest.approx(slow_rate(pairs), abs=1e-6)


def test_its_interval_draws_whole_prompts():
    pairs = random_pairs(prompts=8, seed=1)
    found = controlled(pairs, 30, 2)
    drawn = np.random.default_rng(2).integers(8, size=(30, 8))
    rates = [slow_rate(pairs, np.array([(row == each.prompt).sum() for each in pairs], float)) for row in drawn]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(rates, [2.5, 97.5])), abs=1e-5)


def test_a_judge_that_only_likes_length_finds_no_better_policy_at_equal_length():
    """It names longer answers with odds that grow with the gap; most of one policy's are longer."""
    draw = np.random.default_rng(0)
    gaps = draw.normal(10, 12, 400).round()
    won = draw.random(400) < 1 / (1 + np.exp(-gaps / 6))
    pairs = [
        Judged(n, *(("A", "B") if win else ("B", "A")), 60 + int(gap), 60)
        for n, (gap, win) in enumerate(zip(gaps, won, strict=True))
    ]
    found = figures(pairs, 1.1, 100)
    assert found.raw.rate.low > 0.65
    assert found.controlled.value == pytest.approx(0.5, abs=0.1)
    assert found.controlled.low < 0.5 < found.controlled.high


@pytest.mark.parametrize("replies", [("A", "B"), ("B", "A")])
def test_a_policy_that_always_wins_has_a_rate(replies):
    pairs = [Judged(n, *replies, 10 + n % 3, 10) for n in range(30)]
    found = controlled(pairs, 50, 0)
    assert abs(found.value - (replies == ("A", "B"))) < 1e-2
    assert not math.isnan(found.low)


def test_without_any_verdict_there_are_no_figures():
    found = figures([Judged(0, None, None, 3, 4)], 1.1, 20)
    assert found.unread == 1
    assert math.isnan(found.raw.win.value)
    assert math.isnan(found.controlled.value)
    assert found.position.agreed.n == 0
