"""Small training runs in processes of their own, forked from a server that has imported everything once.

A run writes its terms to OUT/losses.jsonl, its final weights to OUT/weights.safetensors and what it printed to
OUT/output-RANK.txt. It can be told to end itself by SIGKILL at a named moment, and can be killed from outside.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import save_file
from torch.distributed.checkpoint import FileSystemWriter

from grmlight import ExpertsModule, PairDataModule, PrepareOptions, RewardModule
from grmlight.data import token_loader
from grmlight.data.batch import GroupBatch
from grmlight.evaluation import Benchmarks, ScoringOptions
from grmlight.export import SaveModel
from grmlight.models import BackboneConfig, EnsembleConfig, HeadConfig, LoraOptions, gather
from grmlight.policy.alignment import PolicyModule
from grmlight.policy.kl import SampledKL
from grmlight.policy.objectives import AlignmentObjective, Anchor
from grmlight.regularizers import ScoreL2, TextGeneration
from grmlight.training import checkpoints
from grmlight.training.checkpoints import HIDDEN, Checkpoints
from grmlight.training.phases import Phase, Phases
from grmlight.training.sharding import FullySharded

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": 320,
}


TASKS = {"chat": ["clarity", "wit"], "code": ["style"]}
"""Of the runs with experts: the categories and capabilities of their pairs."""


class Run:
    """A run of one or more processes.

    Args:
        out: the folder it writes to.
        arguments: see `parse`.
        ranks: the number of processes.
        program: what each of them runs, of the arguments; `main` without one.
    """

    def __init__(
        self,
        out: Path,
        *arguments: str,
        ranks: int = 1,
        program: Callable[[list[str]], None] | None = None,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["tests.train_run"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GRMLIGHT_CACHE": str(out / "cache")}
        self.processes = []
        for rank in range(ranks):
            placed = shared | ({"LOCAL_RANK": str(rank), "NODE_RANK": "0"} if ranks > 1 else {})
            given = ["--out", str(out), "--devices", str(ranks), *map(str, arguments)]
            self.processes.append(server.Process(target=_in_process, args=(given, placed, rank, program or main)))
            self.processes[-1].start()

    def kill(self) -> None:
        """End all processes at once, as a machine that loses power does."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def wait(self, expect: int = 0, timeout: float = 200) -> None:
        """Wait for the end; when one process is gone, the others have no run to finish."""
        deadline = time.monotonic() + timeout
        while any(process.exitcode is None for process in self.processes) and time.monotonic() < deadline:
            if any(process.exitcode for process in self.processes):
                time.sleep(1)
                break
            time.sleep(0.02)
        codes = [process.exitcode for process in self.processes]
        self.kill()
        assert expect in codes, (codes, self.output())
        assert expect or codes == [0] * len(codes), (codes, self.output())

    def output(self) -> str:
        """What the processes printed, the last of it."""
        files = sorted(self.out.glob("output-*.txt"))
        return "\n".join(path.name + "\n" + path.read_text()[-3000:] for path in files)


def train(out: Path, *arguments: object, ranks: int = 1, expect: int = 0) -> None:
    """A whole run; `expect` is the exit code of at least one process, and of all if it is 0."""
    Run(out, *arguments, ranks=ranks).wait(expect)


def runs_alone(
    folders: pytest.TempPathFactory, material: Iterable[object] = (), make: Callable[..., None] = train
) -> Callable[..., Path]:
    """Runs on some material by their further arguments, each made once, in one process if no `ranks` are given."""

    @functools.cache
    def run(*arguments: object, ranks: int = 1) -> Path:
        out = folders.mktemp("alone")
        make(out, *material, *arguments, ranks=ranks)
        return out

    return run


def losses(out: Path) -> dict[int, dict[str, float]]:
    """The logged lines by step; of a step that was trained twice, the last."""
    rows = map(json.loads, (out / "losses.jsonl").read_text().splitlines())
    return {row["step"]: {name: row[name] for name in row if not name.startswith("speed/")} for row in rows}


def _in_process(
    arguments: list[str], environment: dict[str, str], rank: int, program: Callable[[list[str]], None]
) -> None:
    os.environ.update(environment)
    file = os.open(
        Path(environment["GRMLIGHT_CACHE"]).parent / f"output-{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    )
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    try:
        program(arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


class MeanOfEachPack(RewardModule):
    """The well-known mistake: each pack's mean, whatever its size."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        packs = self.trainer.world_size * self.trainer.accumulate_grad_batches
        return loss * batch.groups_in_step / packs / batch.count_G.sum().clamp(min=1)


class Recorder(L.Callback):
    """Keeps the final weights, and ends the process the hard way where asked."""

    def __init__(self, out: Path, kill_at: int) -> None:
        self.out, self.kill_at = out, kill_at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        last = not isinstance(batch, GroupBatch) or batch.micro_batch + 1 == trainer.accumulate_grad_batches
        if trainer.global_step == self.kill_at and last:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, trainer, pl_module):
        dtypes = {parameter.dtype for parameter in pl_module.model.parameters() if parameter.requires_grad}
        for state in trainer.optimizers[0].state.values():
            dtypes |= {value.dtype for value in state.values() if torch.is_tensor(value)}
        if (whole := gather(pl_module.model)) is not None and trainer.is_global_zero:
            save_file(
                {name: tensor.clone() for name, tensor in whole.state_dict().items()}, self.out / "weights.safetensors"
            )
            (self.out / "dtypes.json").write_text(json.dumps(sorted(map(str, dtypes))))


class StepLogger(CSVLogger):
    """Keeps the terms of each step as JSON lines, appended at once; those of benchmarks in a file of their own."""

    def __init__(self, out: Path) -> None:
        super().__init__(str(out), name="csv", version=0)
        self.path = out / "losses.jsonl"

    def log_metrics(self, metrics, step=None):
        benchmarks = all(name.startswith("benchmarks/") for name in metrics)
        if self.rank_zero() and (benchmarks or "train/loss" in metrics):
            path = self.path.with_name("benchmarks.jsonl") if benchmarks else self.path
            with path.open("a") as file:
                file.write(json.dumps({"step": step} | metrics) + "\n")

    @staticmethod
    def rank_zero() -> bool:
        return int(os.environ.get("LOCAL_RANK", "0")) == 0


def kill_inside(moment: str, count: int) -> None:
    """Let the process end itself at the so-manyth time that a moment comes.

    Moments: shards (they are there without an index), write (half of the file, or of what goes with shards), written
    (whole under its hidden name), published (it has its name, no link yet), linked (the old one is not removed yet).
    """
    owner, name = {
        "shards": (FileSystemWriter, "write_data"),
        "write": (torch, "save"),
        "written": (checkpoints, "publish"),
        "published": (Checkpoints, "_swap_last"),
        "linked": (checkpoints, "discard"),
    }[moment]
    true = getattr(owner, name)
    times = itertools.count(1)

    def dying(*arguments, **options):
        during = moment in {"shards", "write"}
        result = true(*arguments, **options) if during else None
        if (moment != "write" or HIDDEN in str(arguments[1])) and next(times) == count:
            if moment == "write":
                os.truncate(arguments[1], Path(arguments[1]).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result if during else true(*arguments, **options)

    setattr(owner, name, dying)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--backbone", default="", help="a folder; a random model without it")
    parser.add_argument("--keep", action="store_true", help="the backbone's reward head, too")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=None, help="of a pack, instead of 6 pairs a step")
    parser.add_argument("--window", type=int, default=token_loader.WINDOW, help="pairs that are packed together")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--dtype", default="float32", help="of the backbone's own weights")
    parser.add_argument("--mean", action="store_true")
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--one_file", action="store_true", help="of a sharded run, too")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--experts", action="store_true", help="a mixture of experts, in one epoch")
    parser.add_argument("--objective", default=None, help="a policy's: sft, dpo, ipo, slic, rpo or rpo-reference")
    parser.add_argument("--reference", default="store", help="of a policy that is fully trained: store or copy")
    parser.add_argument("--measure", action="store_true", help="a policy's KL, every 6 steps")
    parser.add_argument("--stop_after", default=None, help="a phase of experts")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    parser.add_argument("--padded", action="store_true", help="as a model runs that cannot be packed")
    parser.add_argument("--ensemble", default=None, help="members of an ensemble of 3, its minimum")
    parser.add_argument("--seed", type=int, default=0, help="of the model")
    parser.add_argument("--kill_at", type=int, default=-1, help="the step after which the process ends itself")
    parser.add_argument("--kill_in", default=None, help="MOMENT:COUNT, see kill_inside")
    parser.add_argument("--file_limit", type=int, default=-1, help="bytes of the largest file, as on a full disk")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds to wait after each pack")
    parser.add_argument("--log_every", type=int, default=1)
    parser.add_argument("--save_every", type=int, default=3)
    parser.add_argument("--resume", default=None)
    parser.add_argument("--benchmark", default=None, help="pairs to evaluate on every 3 steps")
    return parser.parse_args(arguments)


def strategy(devices: int, fsdp: bool, one_file: bool = False):
    """FSDP2, DDP or neither, over gloo."""
    if fsdp:
        return FullySharded(devices, 1, not one_file, process_group_backend="gloo")
    return DDPStrategy(process_group_backend="gloo") if devices > 1 else "auto"


def backbone(given: argparse.Namespace) -> BackboneConfig:
    return BackboneConfig(
        name=given.backbone,
        pretrained=bool(given.backbone),
        config=None if given.backbone else TINY | {"attention_dropout": given.dropout},
        lora=LoraOptions(r=4, alpha=8, dropout=given.dropout) if given.lora else None,
        gradient_checkpointing=given.recompute,
        dtype=given.dtype,
    )


def main(arguments: list[str]) -> None:
    given = parse(arguments)
    if given.file_limit > 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (given.file_limit, given.file_limit))
    if given.kill_in:
        moment, count = given.kill_in.split(":")
        kill_inside(moment, int(count))
    options = {
        "head": "keep" if given.keep else HeadConfig(kind="mlp", width=16, dropout=given.dropout),
        "packing": "never" if given.padded else "auto",
        "seed": given.seed,
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    }
    penalties = [] if given.experts or given.keep else [TextGeneration(0.1)]
    if given.experts:
        phases = Phases(Phase(steps=4), Phase(steps=5, rate=2.0), Phase(steps=4))
        module = ExpertsModule(backbone(given), TASKS, phases=phases, stop_after=given.stop_after, **options)
    elif given.objective:
        del options["head"]
        module = PolicyModule(backbone(given), objective(given.objective), reference=given.reference, **options)
    else:
        ensemble = EnsembleConfig(3, given.ensemble, "wco", reference_pairs=10) if given.ensemble else None
        module = (MeanOfEachPack if given.mean else RewardModule)(backbone(given), ensemble=ensemble, **options)
    token_loader.WINDOW = given.window
    data = PairDataModule(
        train=given.data,
        tokenizer=given.tokenizer,
        prepare=PrepareOptions(max_length=200),
        pairs_per_step=None if given.tokens else 6,
        tokens_per_pack=given.tokens,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=given.devices,
        strategy=strategy(given.devices, given.fsdp, given.one_file),
        precision=given.precision,
        accumulate_grad_batches=given.accumulate,
        max_epochs=given.epochs,
        gradient_clip_val=1.0,
        log_every_n_steps=given.log_every,
        logger=StepLogger(given.out),
        callbacks=[
            *([] if given.objective else [*penalties, ScoreL2(0.01)]),
            *([measurement()] if given.measure else []),
            Checkpoints(given.out / "checkpoints", every_n_train_steps=given.save_every, save_last=True),
            Recorder(given.out, given.kill_at),
            SaveModel(),
            *([Slow(given.slow)] if given.slow else []),
            *([benchmarks(given.benchmark)] if given.benchmark else []),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=given.resume)


def letters(prompt: str, response: str) -> float:
    """A reward that is known without a model."""
    return float(len(response))


def measurement() -> SampledKL:
    """Of seven prompts, so that two ranks have different ones and one of them twice."""
    return SampledKL(6, prompts=7, samples=2, max_new_tokens=6, gold="tests.train_run.letters")


def objective(name: str) -> AlignmentObjective:
    """A policy's, with an anchor strong enough to be seen."""
    kind, _, base = name.partition("-")
    anchor = Anchor(eta=0.5, base=base or "chosen", max_new_tokens=8) if kind == "rpo" else None
    return AlignmentObjective(kind, beta=0.3, anchor=anchor)


def benchmarks(path: str) -> Benchmarks:
    """A group a pack, so that ranks have different numbers of packs."""
    return Benchmarks(pairs={"held_out": path}, every_n_steps=3, scoring=ScoringOptions(tokens_per_forward=1))


class Slow(L.Callback):
    """Gives a killer from outside the time to choose."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *arguments):
        time.sleep(self.seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
