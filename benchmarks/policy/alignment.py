"""Whole DPO steps against TRL's DPOTrainer on the same pairs, in turn; their losses must be equal at every step.

TRL runs as installed (gradient checkpointing, the reference computed at each step), without checkpointing, and with
the reference's log-probs computed beforehand too, as ours are. Beside each ratio stands its FLOP ceiling: what the
tokens and the products of the linear layers allow if a FLOP costs the same everywhere. Seconds are of the process's own
processors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from benchmarks.train.material import Material, make_material
from benchmarks.train.ours import fit, optimizer
from benchmarks.train.peers import BETA, LossKeeper, Steps, Variant, trl_options, trl_steps
from benchmarks.train.report import Row
from benchmarks.train.shapes import SHAPES, Shape, ceilings, population, typical_batch
from benchmarks.train.steps import median_ratio
from grmlight import PolicyModule
from grmlight.policy.objectives import AlignmentObjective


class _KeepingDPOTrainer(LossKeeper, DPOTrainer):
    """TRL's trainer."""


def trl_dpo(gradient_checkpointing: bool = True, precompute: bool = False) -> Variant:
    """TRL's DPOTrainer with its defaults but for `trl_options`."""

    def run(material: Material, steps: int) -> Steps:
        rows = [json.loads(line) for line in Path(material.pairs).read_text().splitlines()]
        model = AutoModelForCausalLM.from_pretrained(material.model)
        with tempfile.TemporaryDirectory() as folder:
            options = DPOConfig(
                folder,
                beta=BETA,
                gradient_checkpointing=gradient_checkpointing,
                precompute_ref_log_probs=precompute,
                bf16=False,
                **trl_options(len(rows), steps),
            )
            return trl_steps(_KeepingDPOTrainer, material, rows, model=model, args=options)

    return run


def our_dpo(reference: Any = "store") -> Variant:
    """A run of `Trainer.fit`; the reference comes from the store, or from a copy that runs at each step."""

    def run(material: Material, steps: int) -> Steps:
        module = PolicyModule(
            material.model,
            AlignmentObjective("dpo", beta=BETA),
            reference=reference,
            optimizer=optimizer,
            schedule="constant",
            warmup_ratio=0.0,
        )
        return fit(module, material, steps)

    return run


VARIANTS: dict[str, Variant] = {
    "trl dpo": trl_dpo(),
    "trl dpo without checkpointing": trl_dpo(gradient_checkpointing=False),
    "trl dpo without checkpointing, reference beforehand": trl_dpo(gradient_checkpointing=False, precompute=True),
    "ours dpo": our_dpo(),
    "ours dpo, reference at each step": our_dpo("copy"),
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A ratio of times.

    Attributes:
        name: what it is.
        slow, fast: the variants.
        products: of the linear layers for a token, of the slow and the fast variant: 1 in a forward, 2 in backward.
        floor, target: of the ratio on the reference shape; None where there are none.
    """

    name: str
    slow: str
    fast: str
    products: tuple[int, int]
    floor: float | None = None
    target: float | None = None


FIGURES = (
    Figure("DPO against TRL's DPOTrainer as installed", "trl dpo", "ours dpo", (5, 3), 3.0, 4.0),
    Figure("DPO against TRL without checkpointing", "trl dpo without checkpointing", "ours dpo", (4, 3)),
    Figure(
        "DPO against TRL without checkpointing, both with the reference beforehand",
        "trl dpo without checkpointing, reference beforehand",
        "ours dpo",
        (3, 3),
    ),
    Figure(
        "DPO against TRL as installed, both with the reference at each step",
        "trl dpo",
        "ours dpo, reference at each step",
        (5, 4),
    ),
)


def alignment_rows(folder: Path) -> list[Row]:
    """The ratios on the reference shape at batch 8, and what each variant took."""
    return shape_rows(SHAPES["reference"], 8, 3, 2, folder)


def other_shape_rows(folder: Path) -> list[Row]:
    """The same on the other shapes, one repetition of one step each."""
    others = [shape for shape in SHAPES.values() if shape.name != "reference"]
    return [row for shape in others for row in shape_rows(shape, 8, 1, 1, folder / shape.name)]


def shape_rows(shape: Shape, batch: int, repetitions: int, steps: int, folder: Path) -> list[Row]:
    """The ratios of step times, medians over repetitions that alternate, with their FLOP ceilings."""
    pairs = population(shape)
    material = make_material(folder, typical_batch(pairs, batch))
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for repetition in range(repetitions):
        runs = {}
        for name, variant in VARIANTS.items():
            runs[name] = variant(material, steps + 1)
            seconds[name].append(statistics.mean(runs[name].seconds))
            took = seconds[name][-1]
            print(f"  {shape.name} {batch} [{repetition + 1}/{repetitions}] {name}: {took:.3f} s", flush=True)
        check_same(runs)
    where = f"{shape.name}, batch {batch}"
    tokens, rows = ceilings(pairs, batch).padded_to_shared, []
    for figure in FIGURES:
        bounds = (figure.floor, figure.target) if shape.name == "reference" else (None, None)
        ratio = median_ratio(seconds[figure.slow], seconds[figure.fast])
        ceiling = tokens * figure.products[0] / figure.products[1]
        rows.append(Row(f"{figure.name} ({where})", ratio, "x", *bounds))
        rows.append(Row(f"FLOP ceiling of: {figure.name} ({where})", ceiling, "x"))
    return rows + [
        Row(f"seconds a step, {name} ({where})", statistics.median(took), "s") for name, took in seconds.items()
    ]


def check_same(runs: dict[str, Steps]) -> None:
    """Assert that all variants had one loss at every step."""
    first, *others = (run.losses for run in runs.values())
    for losses in others:
        assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(first, losses, strict=True)), runs
