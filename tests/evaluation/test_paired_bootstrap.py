"""The paired bootstrap against brute force in pure Python: the same draws one by one, and all draws there are."""

import itertools
import math
import random

import numpy as np
import pytest

from grmlight.evaluation.paired_bootstrap import difference_of_draws, paired_difference
from grmlight.evaluation.rows import Row


def made(seed, prompts, weights=False):
    """Rows of two runs: prompts with 1 to 3 rows each, and perhaps weights."""
    chance = random.Random(seed)
    first, second = [], []
    for prompt in range(prompts):
        for number in range(chance.randint(1, 3)):
            pairs = chance.choice([1.0, 2.0]) if weights else 1.0
            for run, share in ((first, 0.5), (second, 0.7)):
                run.append(Row(f"{prompt}-{number}", f"p{prompt}", pairs * (chance.random() < share), pairs))
    return first, second


def difference(prompts, first, second):
    """Accuracy of the second minus the first on a draw of prompts, row by row."""
    right, pairs = [0.0, 0.0], 0.0
    for prompt in prompts:
        for one, other in zip(first, second, strict=True):
            if one.prompt == prompt:
                right[0] += one.right
                right[1] += other.right
                pairs += one.pairs
    return (right[1] - right[0]) / pairs


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_draw_gives_what_its_rows_give_one_by_one(seed):
    first, second = made(seed, 7, weights=True)
    names = list(dict.fromkeys(row.prompt for row in first))
    sums = [[0.0, 0.0] for _ in names]
    for one, other in zip(first, second, strict=True):
        sums[names.index(one.prompt)][0] += other.right - one.right
        sums[names.index(one.prompt)][1] += one.pairs
    drawn = np.random.default_rng(seed).integers(7, size=(50, 7))
    expected = [difference([names[place] for place in draw], first, second) for draw in drawn.tolist()]
    assert difference_of_draws(np.array(sums), drawn).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_interval_is_that_of_all_draws_there_are(seed):
    """Six prompts can be drawn in 6^6 ways; among them lie the exact percentiles."""
    first, second = made(seed, 6)
    names = list(dict.fromkeys(row.prompt for row in first))
    every = sorted(difference(draw, first, second) for draw in itertools.product(names, repeat=6))
    found = paired_difference([(first, second)])
    assert found.value == pytest.approx(difference(names, first, second), abs=1e-12)
    for bound, share in ((found.low, 0.025), (found.high, 0.975)):
        near = every[int((share - 0.008) * len(every)) : int((share + 0.008) * len(every))]
        assert near[0] - 1e-9 <= bound <= near[-1] + 1e-9
    assert (found.rows, found.prompts) == (len(first), 6)


def test_rows_of_one_prompt_are_drawn_together():
    """200 copies of 20 prompts hold no more than 20 prompts."""
    one, two = made(6, 20)
    first = [Row(f"{n}-{row.row}", row.prompt, row.right) for n in range(10) for row in one]
    second = [Row(f"{n}-{row.row}", row.prompt, row.right) for n in range(10) for row in two]
    alone = paired_difference([(one, two)])
    copied = paired_difference([(first, second)])
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    apart = [[Row(row.row, row.row, row.right) for row in run] for run in (first, second)]
    loose = paired_difference([tuple(apart)])
    assert loose.high - loose.low < 0.6 * (copied.high - copied.low)


def test_rows_are_matched_by_name_and_others_left_out():
    first = [Row("1", "a", 1.0), Row("2", "b", 0.0), Row("3", "c", 1.0)]
    second = [Row("4", "d", 1.0), Row("3", "x", 0.0), Row("1", "y", 1.0)]
    found = paired_difference([(first, second)])
    assert (found.value, found.rows, found.prompts) == (-0.5, 2, 2)
    with pytest.raises(ValueError, match="no row in common"):
        paired_difference([(first, [Row("9", "a", 1.0)])])


def test_an_average_weighs_its_parts_alike():
    first = (
        [Row("1", "a", 0.0), Row("2", "b", 0.0)],
        [Row("3", "c", 0.0), *(Row(f"x{n}", f"x{n}", 1.0) for n in range(9))],
    )
    second = (
        [Row("1", "a", 1.0), Row("2", "b", 1.0)],
        [Row("3", "c", 1.0), *(Row(f"x{n}", f"x{n}", 1.0) for n in range(9))],
    )
    found = paired_difference(list(zip(first, second, strict=True)))
    assert found.value == pytest.approx((1.0 + 0.1) / 2)
    assert 0.5 <= found.low <= found.value <= found.high


def test_a_run_is_no_better_than_itself_and_one_prompt_has_no_interval():
    first, _ = made(7, 9)
    assert paired_difference([(first, first)])[:3] == (0.0, 0.0, 0.0)
    alone = paired_difference([([Row("1", "a", 0.0)], [Row("1", "a", 1.0)])])
    assert alone.value == 1.0
    assert math.isnan(alone.low)
