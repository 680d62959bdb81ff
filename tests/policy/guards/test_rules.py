"""The guards' rules on measurements that are made up: figures against brute force, bounds, rows that are not finite."""

import itertools
import math
import statistics
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from grmlight.policy.guards import KLBudget, LengthMonitor, ProxyGoldGap, RepetitionMonitor, SampleTable
from grmlight.policy.guards.repetition_monitor import distinct, longest_repeat
from grmlight.policy.kl import Measured
from grmlight.policy.rollouts import Answer, Rollout
from grmlight.training.checkpoints import Checkpoints


def at(step):
    checkpoints = [Checkpoints("folder")]
    return SimpleNamespace(global_step=step, loggers=[], callback_metrics={}, checkpoint_callbacks=checkpoints)


def measured(proxy, gold, kl=0.0, tokens=(1, 2, 3), ended=True):
    """A prompt an entry."""
    answer = Answer(np.array(tokens, np.int64), "x", ended)
    return [
        Measured(number, Rollout("p", np.zeros(1, np.int64), (answer,)), {"k1": [kl]}, {"proxy": [p], "gold": [g]})
        for number, (p, g) in enumerate(zip(proxy, gold, strict=True))
    ]


@pytest.mark.parametrize("seed", range(6))
def test_the_rule_is_what_its_page_says(seed):
    """Against a slow one, over a random course of measurements."""
    draw = np.random.default_rng(seed)
    errors, patience = 1.0, 2
    guard = ProxyGoldGap(errors, patience)
    course = [(draw.normal(step / 3, 1, 7), draw.normal(-abs(step - 3) / 3, 0.6, 7)) for step in range(12)]
    best, parted, stopped = None, 0, False
    for step, (proxy, gold) in enumerate(course):
        if best is None or np.mean(gold) > np.mean(course[best][1]):
            best, parted = step, 0
        else:
            fallen = [g - b for g, b in zip(gold, course[best][1], strict=True)]
            risen = statistics.mean(proxy) - statistics.mean(course[best][0])
            error = statistics.stdev(fallen) / math.sqrt(len(fallen))
            parted = parted + 1 if -statistics.mean(fallen) > errors * error and risen >= 0 else 0
        stopped = parted >= patience
        guard.look(at(step), measured(proxy, gold))
        assert (guard.best["step"], guard.parted, guard.stopped) == (best, parted, stopped), step
        if stopped:
            break


def test_a_fall_that_is_noise_is_none():
    """The same fall: of every prompt by as much, and of prompts that go anywhere."""
    for gold, parted in (([-1.0, -1.0, -1.0, -1.0], 1), ([-9.0, 7.0, -8.0, 6.0], 0)):
        guard = ProxyGoldGap()
        guard.look(at(0), measured([0.0] * 4, [0.0] * 4))
        guard.look(at(1), measured([1.0] * 4, gold))
        assert guard.parted == parted


def test_prompts_without_a_score_are_left_out():
    guard = ProxyGoldGap(patience=1)
    guard.look(at(0), measured([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, math.nan]))
    guard.look(at(1), measured([1.0, 1.0, math.nan, 1.0], [-1.0, -1.1, 9.0, 9.0]))
    assert guard.stopped
    with pytest.warns(UserWarning, match="ProxyGoldGap: step 2: no prompt has a finite proxy and gold"):
        guard.look(at(2), measured([math.nan], [1.0]))


def test_a_single_prompt_shows_nothing():
    guard = ProxyGoldGap(patience=1)
    guard.look(at(0), measured([0.0], [0.0]))
    guard.look(at(1), measured([1.0], [-5.0]))
    assert not guard.stopped


@pytest.mark.parametrize(("kl", "stopped"), [(2.0, False), (2.1, True), (math.nan, True), (-0.1, False)])
def test_a_budget_is_exceeded_above_it_and_by_what_is_not_finite(kl, stopped):
    guard = KLBudget(2.0)
    guard.look(at(3), measured([0.0], [0.0], kl))
    assert (guard.stopped, guard.kept.step) == (stopped, None if stopped else 3)


def warnings_of(guard, trainer, prompts):
    """Of looking twice."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        guard.look(trainer, prompts)
        guard.look(trainer, prompts)
    return [str(each.message) for each in told]


def slow_longest(tokens):
    return max(
        (
            size
            for size in range(1, len(tokens))
            for one, other in itertools.combinations(range(len(tokens) - size + 1), 2)
            if tokens[one : one + size] == tokens[other : other + size]
        ),
        default=0,
    )


@pytest.mark.parametrize("seed", range(30))
def test_repeats_against_all_pairs_of_places(seed):
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, 1 + seed % 4, draw.integers(0, 14))
    assert longest_repeat(tokens) == slow_longest(tokens.tolist())
    for n in (1, 2, 3):
        grams = [tuple(tokens[start : start + n].tolist()) for start in range(len(tokens)) if start + n <= len(tokens)]
        assert distinct(tokens, n) == (len({*grams}) / len(grams) if grams else 1.0)


def test_a_repeating_policy_is_warned_of_once_by_name():
    guard, trainer = RepetitionMonitor(), at(5)
    guard.look(trainer, measured([0.0], [0.0], tokens=range(9)))
    assert warnings_of(guard, trainer, measured([0.0], [0.0], tokens=[4] * 9)) == [
        "RepetitionMonitor: step 5: distinct_2 is below min_distinct 0.5: of an answer's pairs of tokens 12% are "
        "different",
        "RepetitionMonitor: step 5: repeat is beyond max_repeat 0.5: answers repeat 89% of themselves",
    ]
    assert float(trainer.callback_metrics["guard/repeat"]) == pytest.approx(8 / 9)
    assert float(trainer.callback_metrics["guard/distinct_1"]) == pytest.approx(1 / 9)


def test_a_policy_that_grows_is_warned_of_once_by_name():
    guard, trainer = LengthMonitor(), at(5)
    guard.look(trainer, measured([0.0], [0.0], tokens=range(4)))
    guard.look(trainer, measured([0.0], [0.0], tokens=range(8)))
    assert warnings_of(guard, trainer, measured([0.0], [0.0], tokens=range(9), ended=False)) == [
        "LengthMonitor: step 5: growth is beyond max_growth 2: answers are 2.25 times as long as at first (9.0 tokens)",
        "LengthMonitor: step 5: cut is beyond max_cut 0.5: 100% of the answers are cut off at the length limit",
    ]


@pytest.mark.parametrize(
    "made",
    [
        lambda: KLBudget(0.0),
        lambda: KLBudget(math.nan),
        lambda: KLBudget(1.0, "k4"),
        lambda: ProxyGoldGap(errors=-1),
        lambda: ProxyGoldGap(patience=0),
        lambda: ProxyGoldGap(action="pray"),
        lambda: LengthMonitor(max_growth=0),
        lambda: LengthMonitor(max_cut=2),
        lambda: RepetitionMonitor(min_distinct=-1),
        lambda: SampleTable(prompts=0),
    ],
)
def test_a_wrong_setting_is_named(made):
    with pytest.raises(ValueError, match=r"^[A-Za-z]+: .* (must|one of)"):
        made()
