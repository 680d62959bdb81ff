"""Seeds of dropout: a pure function of where training is, so that no generator's state is saved."""

from __future__ import annotations

import torch


def seed_dropout(device: torch.device, *numbers: int) -> None:
    """Seed dropout's generators on the CPU and on a device with a mix of several numbers.

    `torch.manual_seed` would go through every kind of device, present or not.
    """
    seed = mixed_seed(*numbers)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def mixed_seed(*numbers: int) -> int:
    """A seed from several numbers, by the splitmix64 finalizer."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state
