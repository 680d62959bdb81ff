"""Benchmarks: the same evaluation during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from grmlight.data.batch import GroupBatch
from grmlight.data.files import write_json
from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation.benchmarks import Benchmark, PairFile, Reading, read_benchmark
from grmlight.evaluation.evaluate import Result, evaluate, keep_rows
from grmlight.evaluation.group_scorer import ModelScorer, ScoringOptions
from grmlight.evaluation.report import EVALUATION_FILE, as_json, as_table
from grmlight.evaluation.run_report import run_directory
from grmlight.evaluation.tally import Bootstrap
from grmlight.models.expert_config import ExpertsConfig


class Benchmarks(Callback):
    """Evaluates the model in training on benchmarks, and at the end of training in any case.

    Logs `benchmarks/NAME/CATEGORY` (the accuracy), and keeps the newest result as `evaluation.json` in the run
    directory. Ranks share the rows; the figures do not depend on their number. Needs a PairDataModule, whose tokenizer
    and preparation options it reads text with.

    Args:
        benchmarks: each `NAME` or `NAME=PATH` (see `grmlight.evaluation.benchmarks`).
        pairs: files of pairs by the name that they shall have.
        every_n_epochs: evaluate after so many epochs; None for the end alone.
        every_n_steps: evaluate after so many optimizer steps too.
        scoring: what differs from the preparation of the training pairs.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        benchmarks: Sequence[str] = (),
        pairs: Mapping[str, str] | None = None,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        scoring: ScoringOptions | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not benchmarks and not pairs:
            raise ValueError("Benchmarks: there is nothing to evaluate on; give it benchmarks or pairs")
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"Benchmarks: {name} must be at least 1, got {value}")
        self.benchmarks, self.pairs = list(benchmarks), dict(pairs or {})
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.scoring = scoring or ScoringOptions()
        self.seed = seed
        self.results: list[Result] = []
        self._readings: list[tuple[Benchmark, Reading]] = []
        self._evaluated_at = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the benchmarks before the model is built, so that what is missing is known at once.

        Errors: ValueError in one line for what cannot be read, without a PairDataModule, and for experts that need the
        pairs' categories where a benchmark has none of theirs.
        """
        if stage != "fit" or self._readings:
            return
        if not hasattr(getattr(trainer, "datamodule", None), "tokenizer"):
            raise ValueError("Benchmarks: reads text with the tokenizer of a PairDataModule; train with one")
        files = [PairFile(name) for name in self.pairs]
        found = [read_benchmark(name) for name in self.benchmarks]
        self._readings = [*found, *((each, each.read(self.pairs[each.name])) for each in files)]
        names = [benchmark.name for benchmark, _ in self._readings]
        if len(set(names)) < len(names):
            raise ValueError(f"Benchmarks: two are named alike ({', '.join(names)}); give each name once")
        experts = getattr(pl_module, "experts", None)
        if isinstance(experts, ExpertsConfig) and experts.routing == "given":
            self._check_categories(list(experts.tasks))

    def _check_categories(self, tasks: list[str]) -> None:
        for benchmark, reading in self._readings:
            found = list(dict.fromkeys(example.category for example in reading.examples))
            if not set(found) & set(tasks):
                raise ValueError(
                    f"Benchmarks: {benchmark.name}: {reading.source}: its categories ({', '.join(found[:5])}) are none "
                    f"of the tasks {', '.join(tasks)}, by which routing: given goes; leave it out, or use routing: "
                    "classifier"
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: GroupBatch, batch_idx: int
    ) -> None:
        """Evaluate where it is time and a step is complete."""
        complete = batch.micro_batch + 1 == batch.packs
        if self.every_n_steps and complete and trainer.global_step % self.every_n_steps == 0:
            self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate where it is time."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The saved model is evaluated in any case, and its table printed."""
        self._evaluate(trainer, pl_module)
        if trainer.is_global_zero:
            print(as_table(self.results))

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._evaluated_at == trainer.global_step:
            return
        self._evaluated_at = trainer.global_step
        if meter := getattr(pl_module, "meter", None):
            meter.pause()
        if prepare := getattr(pl_module, "prepare_to_score", None):
            prepare()
        bootstrap = Bootstrap(seed=self.seed, ranks=trainer.world_size, device=trainer.strategy.root_device)
        scorer = self._scorer(trainer, pl_module)
        with trainer.precision_plugin.forward_context():
            self.results = [
                evaluate(scorer, benchmark, reading, bootstrap, trainer.global_rank)
                for benchmark, reading in self._readings
            ]
        self._log(trainer)
        if meter:
            meter.clock.start()

    def _scorer(self, trainer: Trainer, pl_module: LightningModule) -> ModelScorer:
        datamodule: Any = getattr(trainer, "datamodule", None)
        model: Any = pl_module.model
        return ModelScorer(
            model,
            load_tokenizer(datamodule.tokenizer, datamodule.options.chat_template),
            self.scoring.over(datamodule.options),
            name=f"step {trainer.global_step}",
            tokens_per_forward=self.scoring.tokens_per_forward,
            progress=trainer.is_global_zero and trainer.progress_bar_callback is not None,
        )

    def _log(self, trainer: Trainer) -> None:
        figures = {
            f"benchmarks/{row.benchmark}/{row.category}": row.accuracy.value
            for result in self.results
            for row in result.rows
            if row.n
        }
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
        directory: Path | None = run_directory(trainer)
        if directory is not None and trainer.is_global_zero:
            found = as_json(str(directory), self.results) | {"step": trainer.global_step}
            write_json(directory / EVALUATION_FILE, found)
            keep_rows(self.results, directory)
