"""What experts bring, and what of it is their supervision: `python -m grmlight.lab.expert_arms --subsets 3`.

Three topics of the embedded world want opposite things of the same parts of an answer. Overall labels are flipped for
30% of the pairs and capability labels for 10%; every arm sees the same pairs, one label a pair, in as many steps of as
many pairs, with about as many trainable parameters:

- `one`: one reward model on all overall labels;
- `ensemble`: the mean ensemble of as many members as a task has experts, on all overall labels (the paper's rival);
- `outer`: a task model a topic on all overall labels (routing alone);
- `unsupervised`: experts whose pairs carry overall labels, dealt to capabilities by turns (architecture alone);
- `full`: the same pairs labeled for their capability.

Reported is the accuracy against the exact gold of held-out ID pairs, mean and range over disjoint training subsets.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch

from grmlight.data.datamodule import PairDataModule
from grmlight.experts import ExpertsModule
from grmlight.lab.files import WorldFiles, world_files
from grmlight.lab.gold import Parts, parts
from grmlight.lab.words import stream
from grmlight.lab.world import Prompt
from grmlight.models import BackboneConfig, EnsembleConfig, HeadConfig, LoraOptions
from grmlight.reward import RewardModule
from grmlight.training.phases import Phase, Phases

Arm = Literal["one", "ensemble", "outer", "unsupervised", "full"]
ARMS: tuple[Arm, ...] = ("one", "ensemble", "outer", "unsupervised", "full")
_WITHOUT_PHASES: tuple[Arm, ...] = ("one", "ensemble")

CAPABILITIES = ("fact", "count", "style")
WANTS = {"animals": (2.0, -1.0, 1.0), "boats": (-1.0, 1.0, 2.0), "fruits": (1.0, 2.0, -1.0)}
"""What each topic's gold takes of the capabilities, in their order: each part is wanted here and unwanted there."""

OVERALL_NOISE, CAPABILITY_NOISE = 0.3, 0.1


def gold(topic: str, found: Parts) -> float:
    """A topic's gold of an answer."""
    return sum(weight * getattr(found, name) for weight, name in zip(WANTS[topic], CAPABILITIES, strict=True))


def write_pairs(files: WorldFiles, folder: Path, subset: int, pairs: int) -> None:
    """Write test.jsonl and a training file an arm: the same pairs in the same order, and other labels."""
    for name, source in (("train", files.train), ("test", files.tests["id"])):
        with gzip.open(source, "rt", encoding="utf-8") as file:
            rows = [row for row in map(json.loads, file) if row["category"] in WANTS]
        usable = [row for row in rows if _gap(files, row)]
        if name == "test":
            _write(folder / "test.jsonl", [_labeled(files, row, None, flip=False) for row in usable])
            continue
        own = usable[subset * pairs : (subset + 1) * pairs]
        for arm in ARMS:
            rng, seen, made = stream("expert arms", subset), dict.fromkeys(WANTS, 0), []
            for row in own:
                made.append(_training_row(files, row, arm, seen[row["category"]], rng.random()))
                seen[row["category"]] += 1
            _write(folder / f"{arm}.jsonl", made)


def accuracy(arm: Arm, files: WorldFiles, folder: Path, steps: int, seed: int) -> float:
    """Train an arm for `steps` steps of 16 pairs and evaluate it."""
    data = PairDataModule(
        train=str(folder / f"{arm}.jsonl"),
        val=str(folder / "test.jsonl"),
        tokenizer=str(files.tokenizer),
        eval_pairs=128,
        seed=seed,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps if arm in _WITHOUT_PHASES else -1,
        max_epochs=-1 if arm in _WITHOUT_PHASES else 1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = _module(arm, files, steps, seed)
    trainer.fit(module, data)
    trainer.limit_val_batches = 1.0
    trainer.validate(module, data, verbose=False)
    return float(trainer.callback_metrics["val/accuracy"])


def _module(arm: Arm, files: WorldFiles, steps: int, seed: int) -> RewardModule:
    def backbone(rank: int) -> BackboneConfig:
        return BackboneConfig(str(files.lm), lora=LoraOptions(r=rank, alpha=2 * rank, dropout=0.0))

    options: dict[str, Any] = {
        "head": HeadConfig(width=64, dropout=0.0),
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0),
        "seed": seed,
    }
    if arm == "one":
        return RewardModule(backbone(48), **options)
    if arm == "ensemble":
        return RewardModule(backbone(16), ensemble=EnsembleConfig(len(CAPABILITIES), "adapters", "mean"), **options)
    tasks: dict[str, list[str]] = {topic: [*CAPABILITIES] for topic in WANTS}
    if arm == "outer":
        # The last two phases are a formality of a step each; the first one's models are evaluated.
        phases = Phases(Phase(steps=steps), Phase(steps=1), Phase(steps=1), task_share=0.95)
        return ExpertsModule(backbone(16), tasks, phases=phases, stop_after="task", **options)
    task, experts, mixture = (Phase(steps=max(round(share * steps), 1)) for share in (0.4, 0.4, 0.2))
    return ExpertsModule(backbone(4), tasks, phases=Phases(task, experts, mixture), **options)


def _training_row(files: WorldFiles, row: dict[str, Any], arm: Arm, turn: int, draw: float) -> dict[str, Any]:
    """The pair as an arm sees it; `turn` counts the pairs of its topic."""
    name = CAPABILITIES[turn // 2 % len(CAPABILITIES)]
    labeled = turn % 2 == 1 and arm in ("unsupervised", "full") and _gap(files, row, name) != 0
    # Routing alone needs a pair for every expert by the letter, and no more.
    labeled = labeled or (turn % 2 == 1 and arm == "outer" and turn < 2 * len(CAPABILITIES))
    judged = name if labeled and arm == "full" else None
    made = _labeled(files, row, judged, flip=draw < (CAPABILITY_NOISE if judged else OVERALL_NOISE))
    return made | ({"capability": name} if labeled else {})


def _labeled(files: WorldFiles, row: dict[str, Any], capability: str | None, flip: bool) -> dict[str, Any]:
    """A pair ordered by its topic's gold or by one capability."""
    better = (_gap(files, row, capability) > 0) != flip
    sides = (row["chosen"], row["rejected"]) if better else (row["rejected"], row["chosen"])
    return {name: row[name] for name in ("id", "category", "prompt")} | {"chosen": sides[0], "rejected": sides[1]}


def _gap(files: WorldFiles, row: dict[str, Any], capability: str | None = None) -> float:
    prompt = Prompt.parse(row["prompt"])
    first, second = (parts(files.gold.world, prompt, row[side]) for side in ("chosen", "rejected"))
    if capability is not None:
        return getattr(first, capability) - getattr(second, capability)
    return gold(row["category"], first) - gold(row["category"], second)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Run all arms and print a line each."""
    parser = argparse.ArgumentParser(prog="python -m grmlight.lab.expert_arms", description="Experts and controls.")
    parser.add_argument("--subsets", type=int, default=2, help="disjoint training subsets of the shipped world")
    parser.add_argument("--pairs", type=int, default=300, help="pairs of each")
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of each run, of 16 pairs")
    given = parser.parse_args(arguments)
    files = world_files(0)
    found: dict[Arm, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as temporary:
        for subset in range(given.subsets):
            write_pairs(files, Path(temporary), subset, given.pairs)
            for arm in ARMS:
                found[arm].append(accuracy(arm, files, Path(temporary), given.steps, seed=subset))
    for arm, values in found.items():
        mean = sum(values) / len(values)
        print(f"{arm:13} accuracy {mean:.3f}  ({', '.join(f'{value:.3f}' for value in values)})")


if __name__ == "__main__":
    main()
