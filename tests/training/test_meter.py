"""The meter: figures over packs and steps, no word from what is not finite, and no wait for the device."""

import dataclasses

import pytest
import torch

from grmlight.data.batch import Layout
from grmlight.evaluation import pair_figures, pair_sums, pair_values
from grmlight.training.meter import ASIDE, KEPT, Meter, Ranks
from tests.batches import pair_batch
from tests.waits import Waits

LAYOUT = Layout((0, 2, 5, 6), (-1, 0, 0), (1, 2))


def pack(number, packs=1, rows=2):
    """A pack of two pairs, with rewards and rows that follow from its number."""
    generator = torch.Generator().manual_seed(number)
    rewards_N = torch.randn(4, generator=generator)
    batch = dataclasses.replace(
        pair_batch(2, scored=[3, 1, 1 + number % 5, 4]), layout=LAYOUT, packs=packs, micro_batch=number % packs
    )
    return dataclasses.replace(batch, row_C=torch.tensor([10 * number, 10 * number + 1])), rewards_N


def add(meter, number, packs=1, loss=None, norm=None):
    batch, rewards_N = pack(number, packs)
    loss = torch.tensor(float(number) if loss is None else loss)
    meter.add(batch, number // packs, {"loss": loss}, pair_values(rewards_N, batch))
    if (number + 1) % packs == 0:
        meter.end_step(None if norm is None else torch.tensor(norm))


def test_terms_are_means_a_step_and_figures_are_of_all_pairs():
    meter, packs = Meter(), 2
    for number in range(2 * ASIDE + 6):
        add(meter, number, packs, norm=1.0 + number)
    steps = ASIDE + 3
    read = meter.flush(steps, Ranks())
    assert read.figures["loss"] == sum(range(2 * steps)) / steps
    assert read.figures["gradient_norm"] == sum(2.0 + 2 * step for step in range(steps)) / steps
    expected = pair_figures(
        sum(pair_sums([pair_values(rewards_N, batch)]) for batch, rewards_N in map(pack, range(2 * steps))).tolist()
    )
    for name, value in expected.items():
        assert read.figures[name] == pytest.approx(value, rel=1e-12)
    assert read.work.tokens == 6 * 2 * steps
    assert read.work.real == 8 * 2 * steps
    assert meter.flush(steps, Ranks()).figures == {}
    assert meter.since == steps


def test_a_state_goes_on_to_the_same_bits():
    whole, before, after = Meter(), Meter(), Meter()
    for meter in (whole, before):
        for number in range(ASIDE + 9):
            add(meter, number, norm=0.1 * number)
        state = meter.state(Ranks())
    after.load(state, Ranks(), torch.device("cpu"))
    for meter in (whole, after):
        for number in range(ASIDE + 9, 3 * ASIDE):
            add(meter, number, norm=0.1 * number)
    left, right = whole.flush(3 * ASIDE, Ranks()), after.flush(3 * ASIDE, Ranks())
    assert left.figures == right.figures
    assert left.work.tokens == right.work.tokens


def test_a_state_on_another_number_of_ranks_keeps_the_sums():
    meter = Meter()
    for number in range(5):
        add(meter, number)
    state = meter.state(Ranks())
    state["ranks"] *= 2
    ranks = [Ranks(rank, 3, lambda vector: vector[None]) for rank in range(3)]
    totals = 0.0
    for rank in ranks:
        part = Meter()
        part.load(state, rank, torch.device("cpu"))
        totals += part.flush(5, rank).figures["loss"]
    assert totals == 2 * sum(range(5)) / 5


def test_seconds_add_up_over_logged_lines_and_resumes():
    meter, resumed = Meter(), Meter()
    add(meter, 0)
    meter.work.seconds = 2.0
    meter.flush(1, Ranks())
    add(meter, 1)
    meter.work.seconds = 3.0
    resumed.load(meter.state(Ranks()), Ranks(), torch.device("cpu"))
    assert resumed.seconds == pytest.approx(2, abs=0.2)
    resumed.flush(2, Ranks())
    assert resumed.seconds == pytest.approx(5, abs=0.2)


@pytest.mark.parametrize("bad", [4, ASIDE + 5, 3 * ASIDE])
def test_the_first_bad_pack_is_named_by_step_and_rows(bad):
    meter = Meter()
    for number in range(bad):
        add(meter, number, packs=2)
    for number in range(bad, bad + 2 * ASIDE):
        add(meter, number, packs=2, loss=float("nan") if number % 3 == bad % 3 else None)
    message = rf"step {bad // 2 + 1}: these terms are not finite: loss \(rows {10 * bad}, {10 * bad + 1}\)"
    for read in (lambda: meter.state(Ranks()), lambda: meter.flush(99, Ranks())):
        with pytest.raises(ValueError, match=message):
            read()


def test_a_gradient_that_is_not_finite_is_of_its_whole_step():
    meter = Meter()
    for number in range(3 * ASIDE):
        add(meter, number, packs=2, norm=float("inf") if number == 41 else 1.0)
    with pytest.raises(ValueError, match=r"step 21: .*finite: gradient_norm \(rows 400, 401, 410, 411\)"):
        meter.flush(99, Ranks())


def test_rewards_that_are_not_finite_count_even_if_the_loss_is():
    meter = Meter()
    batch, rewards_N = pack(0)
    values = pair_values(torch.tensor([float("inf"), 0.0, 1.0, 0.0]), batch)
    meter.add(batch, 0, {"loss": torch.tensor(0.0)}, values)
    meter.end_step(None)
    with pytest.raises(ValueError, match="step 1: these terms are not finite: rewards"):
        meter.flush(1, Ranks())


def test_rows_that_are_no_longer_known_are_no_crash():
    meter = Meter()
    for number in range(KEPT + 2):
        add(meter, number, loss=float("nan") if number == 1 else None)
    with pytest.raises(ValueError, match="step 2: .*its rows are no longer known"):
        meter.flush(KEPT + 2, Ranks())


def test_nothing_in_a_step_waits_for_the_device():
    meter, packs = Meter(), [pack(number) for number in range(2 * ASIDE)]
    with Waits() as waits:
        for number, (batch, rewards_N) in enumerate(packs):
            meter.add(batch, number, {"loss": torch.ones(())}, pair_values(rewards_N, batch))
            meter.end_step(torch.ones(()))
    assert waits.found == []
