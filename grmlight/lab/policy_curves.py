"""Proxy and gold against KL for every policy method, several seeds: `python -m grmlight.lab.policy_curves --out DIR`.

A run is a method and a seed. Runs of one seed start from the same SFT policy and share its pairs and proxy
(`grmlight.lab.policy_start`). DIR/runs/METHOD-SEED holds a run that is done, and it is not run again; DIR/curves.jsonl
all curve points, table.md means over seeds with intervals (`grmlight.lab.policy_table`), curves.png the picture. Two
commands may fill one folder at the same time, with other methods or seeds, once the starts are made.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from grmlight.data.files import sole_writer, write_json, write_whole
from grmlight.evaluation.curves import plot_curves, read_curves, write_curves
from grmlight.lab.paired import STUDENT_T_95
from grmlight.lab.policy_runs import METHODS, PromptPoint, run
from grmlight.lab.policy_start import Sizes, make_start
from grmlight.lab.policy_table import Row, as_markdown, row_of

CURVE, PROMPTS, SECONDS = "curve.jsonl", "prompts.jsonl", "seconds.json"
"""What a run leaves."""


def study(out: Path, configs: Path, methods: Sequence[str], seeds: int, sizes: Sizes) -> list[Row]:
    """Run what is not done yet, and summarize all runs in the folder.

    Args:
        out: the folder.
        configs: the folder of the shipped configurations.
        methods: of `METHODS`.
        seeds: 0 to seeds - 1.
        sizes: of the study.

    Returns: a row a method that is done for any seed, in the order of `METHODS`.

    Errors: ValueError in one line, also for a folder with another study.
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise ValueError(f"method {unknown[0]!r}: there is none of that name; choose from {', '.join(METHODS)}")
    if not 1 <= seeds <= max(STUDENT_T_95):
        raise ValueError(f"seeds must be 1 to {max(STUDENT_T_95)}, got {seeds}")
    _check_same(out, configs, sizes)
    todo = [(seed, method) for seed in range(seeds) for method in methods]
    todo = [(seed, method) for seed, method in todo if not (_folder(out, method, seed) / CURVE).exists()]
    with tqdm(todo, desc="runs", unit=" runs") as bar:
        for seed, method in bar:
            bar.set_postfix_str(f"{method}, seed {seed}")
            _run(out, configs, method, seed, sizes)
    return _summarize(out)


def _run(out: Path, configs: Path, method: str, seed: int, sizes: Sizes) -> None:
    """A run; its curve is written last, and is the sign that it is done."""
    folder = _folder(out, method, seed)
    start = make_start(out / "starts" / str(seed), configs, seed, sizes)
    with sole_writer(folder):
        began = time.process_time()
        points, prompts = run(method, start, folder / "best-of-n", configs, seed, sizes)
        write_json(folder / SECONDS, {"cpu_seconds": time.process_time() - began})
        rows = (json.dumps(dataclasses.asdict(each)) + "\n" for each in prompts)
        write_whole(folder / PROMPTS, "".join(rows))
        write_curves(folder / CURVE, points)


def _summarize(out: Path) -> list[Row]:
    """Gather the runs that are done, and write curves, table and picture."""
    rows, points = [], []
    for method in METHODS:
        folders = {int(path.parent.name.rpartition("-")[2]): path.parent for path in _done(out, method)}
        if not folders:
            continue
        curves = {seed: read_curves(folders[seed] / CURVE) for seed in sorted(folders)}
        rows.append(row_of(method, curves, {seed: _read_prompts(folders[seed] / PROMPTS) for seed in curves}))
        points += [point for curve in curves.values() for point in curve]
    write_curves(out / "curves.jsonl", points)
    write_whole(out / "table.md", as_markdown(rows))
    plot_curves(points, out / "curves.png")
    return rows


def _check_same(out: Path, configs: Path, sizes: Sizes) -> None:
    """Runs of other sizes or configurations are no further seeds of these."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(configs.glob("*.yaml"))}
    if not digests:
        raise ValueError(f"{configs}: holds no configurations; name the repository's folder of them with --configs")
    wanted = {"sizes": dataclasses.asdict(sizes), "configs": digests}
    path = out / "study.json"
    if not path.exists():
        write_json(path, wanted)
    elif json.loads(path.read_text(encoding="utf-8")) != wanted:
        raise ValueError(f"{path}: these runs have other sizes or configurations; name another folder with --out")


def _folder(out: Path, method: str, seed: int) -> Path:
    return out / "runs" / f"{method}-{seed}"


def _done(out: Path, method: str) -> list[Path]:
    return sorted(path for path in out.glob(f"runs/{method}-*/{CURVE}") if path.parent.name[: -len("-0")] == method)


def _read_prompts(path: Path) -> list[PromptPoint]:
    return [PromptPoint(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def main(arguments: list[str] | None = None) -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(prog="python -m grmlight.lab.policy_curves", description="Policies, with seeds.")
    parser.add_argument("--out", type=Path, required=True, help="the folder of runs, curves and table")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method, 1 to 10")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="all by default")
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="the folder of shipped configurations")
    given = parser.parse_args(arguments)
    # Twenty-seven trainers introduce themselves otherwise, and the reference's copy is in eval mode as it should be.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    print(as_markdown(study(given.out, given.configs, given.methods, given.seeds, Sizes())))


if __name__ == "__main__":
    main()
