"""Work and time of training steps: counted on the host from the batches, so that nothing waits for the device."""

from __future__ import annotations

import dataclasses
import itertools
import resource
import sys
import time
from collections.abc import Sequence

import torch

from grmlight.data.batch import GroupBatch
from grmlight.models.flops import ModelFlops

# Dense bf16 TFLOP/s by part of the device's name, the first that fits (makers' data sheets).
_PEAKS = {"B200": 2250, "H100 PCIe": 756, "H100": 989, "H200": 989, "L40S": 362, "A100": 312, "4090": 165}


class Clock:
    """Seconds while it runs. Validation and checkpoints pause it."""

    def __init__(self) -> None:
        self._since: float | None = None

    def start(self) -> None:
        """Run from now on; time since an earlier start is not counted."""
        self._since = time.perf_counter()

    @property
    def running(self) -> bool:
        """Whether time counts."""
        return self._since is not None

    def stop(self) -> float:
        """The seconds since the start, 0 if it stands."""
        seconds = 0.0 if self._since is None else time.perf_counter() - self._since
        self._since = None
        return seconds


@dataclasses.dataclass
class Work:
    """What one rank's packs held, and the time they took.

    Attributes:
        packs: their number.
        tokens: tokens that ran through the model.
        largest: of them in the largest pack.
        attended: pairs of a token and one that it sees, itself included.
        scored: scored tokens of all responses.
        kept: tokens of the packs that are no repetition.
        real: the same as if each response had its prompt to itself.
        groups: groups that count.
        seconds: time spent training.
        memory: bytes at the peak so far.
    """

    packs: float = 0
    tokens: float = 0
    largest: float = 0
    attended: float = 0
    scored: float = 0
    kept: float = 0
    real: float = 0
    groups: float = 0
    seconds: float = 0
    memory: float = 0

    def add(self, batch: GroupBatch, attention: bool) -> None:
        """Count a pack; what only FLOPs need is left out without `attention`."""
        bounds, prefix = batch.layout.bounds, batch.layout.prefix
        tokens = bounds[-1]
        self.packs += 1
        self.tokens += tokens
        self.largest = max(self.largest, tokens)
        if not batch.repeated:
            self.groups += batch.groups
            self.kept += tokens
            for response in batch.layout.responses:
                prompt = prefix[response]
                self.real += bounds[response + 1] - bounds[response] + bounds[prompt + 1] - bounds[prompt]
        if attention:
            lengths = [end - start for start, end in itertools.pairwise(bounds)]
            for length, prompt in zip(lengths, prefix, strict=True):
                self.attended += length * (length + 1) // 2 + (length * lengths[prompt] if prompt >= 0 else 0)
            self.scored += batch.response_L.shape[0]


def together(ranks: Sequence[Work]) -> Work:
    """The work of all ranks: counts add up, time and memory are the largest."""
    totals = {field.name: [getattr(work, field.name) for work in ranks] for field in dataclasses.fields(Work)}
    return Work(**{n: (max if n in ("largest", "seconds", "memory") else sum)(each) for n, each in totals.items()})


def work_figures(work: Work, ranks: int, flops: ModelFlops | None, peak: float | None) -> dict[str, float]:
    """The figures by name: of the packs as `train/`, of time and memory as `speed/`.

    Args:
        work: of all ranks together.
        ranks: their number.
        flops: of the model.
        peak: of each device, in FLOP/s.
    """
    figures = {"speed/memory_gb": work.memory / 1e9}
    if work.kept:
        figures["train/sharing"] = work.real / work.kept
    if work.packs:
        figures["train/imbalance"] = work.largest * work.packs / work.tokens
    if work.seconds > 0:
        figures["speed/tokens_per_second"] = work.real / work.seconds
        figures["speed/pairs_per_second"] = work.groups / work.seconds
        if flops is not None and peak is not None:
            done = flops.of(work.tokens, work.attended, work.scored)
            figures["speed/mfu"] = done / (work.seconds * peak * ranks)
    return figures


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of a device, None where its name is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for part, peak in _PEAKS.items() if part in name), None)


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: allocated by torch on a GPU, resident of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
