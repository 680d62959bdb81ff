"""The meter: means a step, one reduction, and no word from what is not finite."""

import pytest
import torch

from grmlight.meter import Meter


def same(values):
    return values


def test_means_are_a_step_whatever_the_number_of_packs():
    meter = Meter()
    for value in (1.0, 2.0, 3.0, 4.0):
        meter.add({"loss": torch.tensor(value)})
    assert meter.flush(2, same) == {"loss": 5.0}
    meter.add({"loss": torch.tensor(7.0)})
    assert meter.flush(3, same) == {"loss": 7.0}
    assert meter.flush(4, same) == {}


def test_a_state_goes_on_where_it_was_and_one_rank_alone_keeps_it():
    before = Meter()
    before.add({"loss": torch.tensor(3.0)})
    state = before.state(1, same)
    ranks = [Meter(), Meter()]
    for rank, meter in enumerate(ranks):
        meter.load(state, keep=rank == 0, device=torch.device("cpu"))
        meter.add({"loss": torch.tensor(0.5)})
    total = sum(meter.totals(2, same)["loss"] for meter in ranks)
    assert total == 4.0


def test_what_is_not_finite_is_named_and_cannot_be_saved():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "spread": torch.tensor(float("nan"))})
    for read in (meter.state, meter.flush):
        with pytest.raises(ValueError, match="between steps 1 and 4 these terms are not finite: spread"):
            read(4, same)
