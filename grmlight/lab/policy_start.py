"""Where every method of `policy_curves` starts, once a seed: the papers' protocol, as in `configs/chain.sh`.

Supervised fine-tuning (SFT) makes the policy; it answers each training prompt twice; the gold labels the pairs, and a
quarter of the labels is flipped; a reward model that learns from the first of these pairs is the proxy. No prompt that
is measured on is trained on, in any of these. Seeds differ in all of this but the set of prompts.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from grmlight.data.files import remove, sole_writer, temporary_sibling, write_whole
from grmlight.export import save_model
from grmlight.lab.files import world_files
from grmlight.lab.gold_reward import GoldReward
from grmlight.lab.prompts import distinct_prompts
from grmlight.lab.shipped import Shipped, shipped
from grmlight.lab.words import stream
from grmlight.lab.world import Split
from grmlight.policy.best_of_n import BestOfN, run_best_of_n
from grmlight.policy.relabel import relabel
from grmlight.policy.sampler import SamplingOptions

NOISE = 0.25
"""Share of labels that are flipped (Coste et al. 2023)."""

LONGEST = 40
"""Tokens of an answer, its end token included."""

HELD_OUT = "id"
"""What the set of held-out prompts is called."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the study is.

    Attributes:
        sft_pairs: pairs whose chosen responses make the first policy.
        prompts: training prompts.
        pairs: that the proxy and direct alignment learn from, at most.
        held_out: prompts that are measured on.
        samples: answers to each of them at a measurement.
        measurements: after the first one, evenly over a run.
        answers: of best-of-n to a held-out prompt.
        max_n: largest n; less than `answers`, since few subsets are left near that.
        max_steps: optimizer steps of a run, at most; -1 for what is shipped.
    """

    sft_pairs: int = 300
    prompts: int = 640
    pairs: int = 400
    held_out: int = 128
    samples: int = 2
    measurements: int = 5
    answers: int = 128
    max_n: int = 64
    max_steps: int = -1


@dataclasses.dataclass(frozen=True)
class Start:
    """What a seed's runs share, as files.

    Attributes:
        policy: the model folder of the SFT policy.
        proxy: the reward model's.
        pairs: what it learned from.
        prompts: to train on.
        held_out: to measure on; rows are pairs, whose prompts count.
    """

    policy: Path
    proxy: Path
    pairs: Path
    prompts: Path
    held_out: Path


def make_start(folder: Path, configs: Path, seed: int, sizes: Sizes) -> Start:
    """Make what is not in the folder yet.

    Errors: ValueError in one line, also if another process is at it.
    """
    files = {name: folder / f"{name}.jsonl" for name in ("held_out", "prompts", "sft", "pairs")}
    start = Start(folder / "policy", folder / "proxy", files["pairs"], files["prompts"], files["held_out"])
    with sole_writer(folder):
        if not files["sft"].exists():
            _write_prompts(files, seed, sizes)
        if not start.policy.exists():
            _save(start.policy, _trained(configs / "sft.yaml", files["sft"], start, seed, sizes.sft_pairs, sizes))
        if not start.pairs.exists():
            _label(start, folder, seed)
        if not start.proxy.exists():
            _save(start.proxy, _trained(configs / "grm.yaml", start.pairs, start, seed, sizes.pairs, sizes))
    return start


def _write_prompts(files: dict[str, Path], seed: int, sizes: Sizes) -> None:
    """Held-out rows, training prompts without theirs, and rows for SFT without theirs; the last one is the sign."""
    world = world_files(0)
    held_out = {row["prompt"]: row for row in reversed(_rows(world.tests["id"]))}
    first = dict.fromkeys(row["prompt"] for row in _rows(world.tests["id"]))
    kept = [held_out[prompt] for prompt in list(first)[: sizes.held_out]]
    taken = {row["prompt"] for row in kept}
    rng = stream("policy curves", seed)
    prompts = [{"prompt": prompt} for prompt in distinct_prompts(0, Split.ID) if prompt not in taken][: sizes.prompts]
    rows = [row for row in _rows(world.train) if row["prompt"] not in taken]
    rng.shuffle(prompts)
    rng.shuffle(rows)
    for name, found in (("held_out", kept), ("prompts", prompts), ("sft", rows[: sizes.sft_pairs])):
        write_whole(files[name], "".join(json.dumps(row) + "\n" for row in found))


def _label(start: Start, folder: Path, seed: int) -> None:
    """Two answers a prompt, ordered by the gold, with flips."""
    job = BestOfN(
        policy=str(start.policy),
        prompts=str(start.prompts),
        out=folder / "sampled",
        rewards={},
        gold=None,
        sampling=SamplingOptions(samples=2, max_new_tokens=LONGEST),
        seed=seed,
        pairs=folder / "unlabeled.jsonl",
    )
    run_best_of_n(job)
    relabel(str(job.pairs), start.pairs, GoldReward(), NOISE, seed)


def _trained(config: Path, pairs: Path, start: Start, seed: int, limit: int, sizes: Sizes) -> Shipped:
    """A shipped configuration on pairs of ours; SFT for one epoch, as in the chain."""

    def change(entries: dict[str, Any]) -> None:
        entries["model"]["init_args"]["seed"] = seed
        entries["data"] = pair_data(entries["data"], pairs, start, limit, seed)
        if config.stem == "sft":
            entries["trainer"] |= {"max_epochs": 1, "callbacks": []}

    L.seed_everything(seed, verbose=False)
    made = shipped(config, change)
    made.fit(max_steps=sizes.max_steps)
    return made


def pair_data(shipped_data: dict[str, Any], pairs: Path, start: Start, limit: int, seed: int) -> dict[str, Any]:
    """The data of a configuration, with pairs and held-out prompts of ours."""
    own = {
        "train": str(pairs),
        "val": {HELD_OUT: str(start.held_out)},
        "tokenizer": str(world_files(0).tokenizer),
        "prepare": {"limit": limit},
        "seed": seed,
    }
    kept = {name: shipped_data["init_args"][name] for name in ("pairs_per_step", "eval_pairs")}
    return {"class_path": "grmlight.PairDataModule", "init_args": kept | own}


def _save(folder: Path, made: Shipped) -> None:
    temporary = temporary_sibling(folder)
    try:
        save_model(made.model.model, temporary, made.data.tokenizer, made.data.options)
        temporary.replace(folder)
    finally:
        remove(temporary)


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
