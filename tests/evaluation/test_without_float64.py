"""Metrics on a device without float64, as MPS is: their sums stay on the CPU and rows are brought there."""

import pytest
import torch

from grmlight.evaluation import (
    BestOfK,
    Calibration,
    LengthCorrelation,
    PairAccuracy,
    RewardBench2Average,
    SectionAverage,
    TiesScore,
    clustered,
)

SIDES = torch.tensor([3.0, 1.0, 2.0, 5.0]), torch.tensor([1.0, 2.0, 2.0, 1.0])
PROMPTS = torch.tensor([0, 0, 1, 2])
GROUPS = (torch.tensor([3.0, 1.0, 2.0, 5.0]), torch.tensor([True, False] * 2), torch.tensor([0, 0, 1, 1]))
TIED, TWO = torch.tensor([False, True]), torch.tensor([0, 1])
CASES = {
    "accuracy": (lambda: PairAccuracy(3), (*SIDES, PROMPTS)),
    "calibration": (lambda: Calibration(3), (*SIDES, PROMPTS, torch.ones(4))),
    "correlation": (lambda: LengthCorrelation(3), (*SIDES, PROMPTS)),
    "best": (lambda: BestOfK(2), (*GROUPS, TWO)),
    "sections": (lambda: SectionAverage({"s": {"a": 1, "b": 2}}, 3), (*SIDES, PROMPTS, torch.tensor([0, 1, 0, 1]))),
    "ties": (lambda: TiesScore(2), (*GROUPS, TIED, TWO)),
    "average": (lambda: RewardBench2Average(["a"], 2), (*GROUPS, TIED, TWO, TWO)),
}


class Mps(torch.Tensor):
    """A tensor of a device that knows no float64; off it, it is a plain one."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and args[1:2] == (torch.device("cpu"),):
            return args[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(found, Mps) and found.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return found


@pytest.mark.parametrize("name", CASES)
def test_rows_of_such_a_device_give_the_same_figures(name):
    make, columns = CASES[name]
    expected, found = make(), make()
    expected.update(*columns)
    found.update(*(column.as_subclass(Mps) for column in columns))
    assert torch.equal(found.sums_PK, expected.sums_PK)
    assert type(found.sums_PK) is torch.Tensor


def test_the_sums_do_not_move_to_such_a_device(monkeypatch):
    """The meta device stands for it: what went there would have no values."""
    dtype = clustered.sum_dtype
    monkeypatch.setattr(
        clustered, "sum_dtype", lambda device: torch.float32 if device.type == "meta" else dtype(device)
    )
    make, columns = CASES["accuracy"]
    metric = make().to("meta")
    assert (metric.sums_PK.device.type, metric.sums_PK.dtype) == ("cpu", torch.float64)
    metric.update(*columns)
    assert metric.interval().value == pytest.approx(2.5 / 4)
    monkeypatch.undo()
    assert make().to("meta").sums_PK.device.type == "meta"
