"""A training step that never waits for the device."""

import lightning.pytorch as L
import pytest

from grmlight.regularizers import DirectPreference, TextGeneration
from tests.test_module import Spread, data, fit, reward_module
from tests.waits import Waits

__all__ = ["data"]


class Waiting(Spread):
    """One that reads a number in the middle of a step."""

    def __init__(self, weight):
        super().__init__(weight)
        self.name = "waiting"

    def penalty(self, outputs, batch):
        return super().penalty(outputs, batch) / (1 + outputs.rewards_N.detach().abs().max().item())


class Watching(L.Callback):
    """Notes what forward, loss, figures and backward would wait for."""

    def __init__(self):
        self.waits = Waits()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.waits.__enter__()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.waits.__exit__(None, None, None)


@pytest.mark.parametrize("kind", [TextGeneration, DirectPreference, Waiting])
def test_no_step_waits_for_the_device(kind, data):
    watching = Watching()
    fit(reward_module(), data(), kind(0.1), watching, steps=3, log_every_n_steps=3)
    assert bool(watching.waits.found) == (kind is Waiting)
