"""GRM beside the same model without it, paired: `python -m grmlight.lab.paired --worlds 1 2 3 4 5`.

For every world and disjoint subset of training pairs, both are trained from the same start with the same head, order
and seed; only the regularizer differs. What is reported is the mean over worlds of the paired difference, with the
interval of Student's t over worlds, since runs of one world share their tests and their LM.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from tqdm.auto import tqdm

from grmlight.lab.datamodule import WorldData
from grmlight.lab.files import world_files
from grmlight.regularizers import TextGeneration
from grmlight.reward import RewardModule

STUDENT_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95% quantiles of Student's t, by number of worlds."""


def accuracies(world: int, subset: int, alpha: float, pairs: int = 200) -> dict[str, float]:
    """Train once (5 epochs, learning rate 1e-3, MLP head) and return the accuracy in and out of distribution."""
    data = WorldData(world=world, pairs=pairs, offset=subset * pairs, seed=subset)
    module = RewardModule(
        str(world_files(world).lm),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0),
        seed=subset,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=5,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        callbacks=[TextGeneration(alpha)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    trainer.limit_val_batches = 1.0
    trainer.validate(module, data, verbose=False)
    found = {name: float(trainer.callback_metrics[f"val/{name}/accuracy"]) for name in data.val_sources}
    shifted = [value for name, value in found.items() if name != "id"]
    return {"id": found["id"], "ood": sum(shifted) / len(shifted)}


def summarize(differences: list[list[float]]) -> tuple[float, float]:
    """Mean over worlds of each world's mean difference, and half the width of its 95% interval."""
    means = [sum(world) / len(world) for world in differences]
    center = sum(means) / len(means)
    deviation = math.sqrt(sum((mean - center) ** 2 for mean in means) / (len(means) - 1))
    return center, STUDENT_T_95[len(means)] * deviation / math.sqrt(len(means))


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison and print it; every run's figures go to `--out` as they come."""
    parser = argparse.ArgumentParser(prog="python -m grmlight.lab.paired", description="GRM beside vanilla, paired.")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="seeds of 2 to 10 worlds")
    parser.add_argument("--subsets", type=int, default=4, help="disjoint training subsets a world")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.01, 0.5], help="weights of the regularizer")
    parser.add_argument("--out", type=Path, default=Path("paired.jsonl"), help="the file of single runs")
    given = parser.parse_args(arguments)
    runs = [(world, subset) for world in given.worlds for subset in range(given.subsets)]
    results: dict[float, dict[tuple[int, int], dict[str, Any]]] = {alpha: {} for alpha in [0.0, *given.alphas]}
    with given.out.open("a", encoding="utf-8") as file:
        for run in tqdm(runs, desc="paired runs"):
            for alpha, found in results.items():
                found[run] = accuracies(*run, alpha)
                file.write(json.dumps({"world": run[0], "subset": run[1], "alpha": alpha} | found[run]) + "\n")
                file.flush()
    for alpha in given.alphas:
        for place in ("id", "ood"):
            differences = [
                [results[alpha][w, s][place] - results[0.0][w, s][place] for s in range(given.subsets)]
                for w in given.worlds
            ]
            center, half = summarize(differences)
            wins = sum(value > 0 for world in differences for value in world)
            print(
                f"alpha {alpha:g} {place:3}: GRM - vanilla {100 * center:+.1f} points, 95% interval "
                f"[{100 * (center - half):+.1f}, {100 * (center + half):+.1f}], {wins} of {len(runs)} runs gain"
            )


if __name__ == "__main__":
    main()
