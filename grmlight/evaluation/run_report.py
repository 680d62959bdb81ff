"""RunReport: what was found in the data before step 1, and how the run ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from grmlight.data.files import write_json
from grmlight.evaluation.bag_of_words import bag_of_words_accuracy
from grmlight.evaluation.disagreement import DISAGREEMENT
from grmlight.evaluation.log_ratios import LOG_RATIOS
from grmlight.evaluation.metrics import wilson_interval
from grmlight.evaluation.pair_figures import FIGURES
from grmlight.evaluation.ranks import from_all_ranks
from grmlight.evaluation.router_error import FIGURES as ROUTER_FIGURES
from grmlight.evaluation.rows import Rows, row_counts, rows_file, rows_of, write_rows


class RunReport(Callback):
    """Prints the data's lint before the first step and the results at the end; keeps both as JSON.

    Writes `data.json` (for each set: rows, used, refused and noted rows by reason), `results.json` (for each
    evaluation set: accuracy with its 95% interval, beside "longer wins" and, after training, a bag of words, and the
    other figures of `docs/metrics.md`), `rows-SET.json` (`grmlight.evaluation.rows`) and `costs.json` (`run_costs`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._validated_at = -1
        self._counts: dict[int, list[Tensor]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Right after the data is prepared, before the model is built."""
        directory = run_directory(trainer)
        prepared = getattr(getattr(trainer, "datamodule", None), "prepared", {})
        if not trainer.is_global_zero or not prepared:
            return
        reports = {
            name: {"source": each.source, "fingerprint": each.fingerprint} | each.report
            for name, each in prepared.items()
        }
        if directory is not None:
            write_json(directory / "data.json", reports)
        for name, report in reports.items():
            print(describe_report(name, report))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate once more if the last step came after the last validation, so that results are the saved model's."""
        if self._validated_at != trainer.global_step and trainer.limit_val_batches:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last step."""
        self._conclude(trainer, pl_module, "val")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before each validation."""
        self._counts = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before `test`."""
        self._counts = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what is right of each row."""
        self._count(outputs, batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what is right of each row."""
        self._count(outputs, batch, dataloader_idx)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After `test`."""
        self._conclude(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After `validate` alone; within `fit` the results come once, at the end."""
        if not trainer.sanity_checking:
            self._validated_at = trainer.global_step
        if trainer.state.fn == "validate":
            self._conclude(trainer, pl_module, "val")

    def _count(self, outputs: Any, batch: Any, place: int) -> None:
        if isinstance(outputs, Mapping) and "rewards_N" in outputs:
            self._counts.setdefault(place, []).append(row_counts(outputs["rewards_N"], batch))

    def _conclude(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        directory = run_directory(trainer)
        found = {place: torch.cat(counts).cpu() for place, counts in self._counts.items()}
        everywhere = from_all_ranks([found]) if directory is not None else []
        if not trainer.is_global_zero or not (results := evaluation_results(trainer, stage)):
            return
        if directory is not None:
            write_json(directory / "results.json", results)
            write_json(directory / "costs.json", run_costs(trainer, pl_module))
            _write_rows(trainer, stage, directory, everywhere)
        print(describe_results(results))


def _write_rows(trainer: Trainer, stage: str, directory: Path, found: list[dict[int, Tensor]]) -> None:
    datamodule: Any = getattr(trainer, "datamodule", None)
    for place, name in enumerate(getattr(datamodule, f"{stage}_sources", {})):
        if counts := [each[place] for each in found if place in each]:
            prepared = datamodule.prepared[name]
            rows = Rows(prepared.source, prepared.fingerprint, rows_of(torch.cat(counts), prepared.store))
            write_rows(rows_file(directory, name), rows)


def run_costs(trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
    """What the model costs.

    `trainable_parameters`; `scoring_passes`, the forwards of a backbone that a response's reward takes (a model of
    several says so in its `scoring_passes`); after training `train_seconds`, the time spent training on the slowest
    rank, without validation and checkpoints, over all stops and resumes.
    """
    costs = {
        "trainable_parameters": sum(each.numel() for each in pl_module.parameters() if each.requires_grad),
        "scoring_passes": getattr(getattr(pl_module, "model", None), "scoring_passes", 1),
    }
    meter: Any = getattr(pl_module, "meter", None)
    return costs | ({"train_seconds": meter.seconds} if trainer.state.fn == "fit" and meter is not None else {})


def run_directory(trainer: Trainer) -> Path | None:
    """The folder of this run, made if need be, or None where nothing is kept. Call it on every rank alike."""
    directory = trainer.log_dir if trainer.loggers and not trainer.fast_dev_run else None  # pyright: ignore[reportAttributeAccessIssue]
    if directory is None:
        return None
    if trainer.is_global_zero:
        Path(directory).mkdir(parents=True, exist_ok=True)
    return Path(directory)


def evaluation_results(trainer: Trainer, stage: str) -> dict[str, dict[str, float]]:
    """For each evaluation set: the figures, accuracy's 95% interval, the rulers, and the number of pairs."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    results = {}
    for name in getattr(datamodule, f"{stage}_sources", {}):
        prefix = f"{stage}/" if name == stage else f"{stage}/{name}/"
        counted = ("accuracy", "longer_wins", "pairs", "groups")
        figures = {key: trainer.callback_metrics.get(prefix + key) for key in counted}
        if any(value is None for value in figures.values()) or not figures["pairs"]:
            continue
        found = {key: float(value) for key, value in figures.items() if value is not None}
        found["low"], found["high"] = wilson_interval(found["accuracy"], int(found["groups"]))
        named = (*FIGURES, *DISAGREEMENT, *LOG_RATIOS, *ROUTER_FIGURES)
        figures = {key: trainer.callback_metrics.get(prefix + key) for key in named}
        found |= {key: float(value) for key, value in figures.items() if value is not None}
        results[name] = found
        store, report = datamodule.prepared[name].store, datamodule.prepared[name].report
        if (train := datamodule.prepared.get("train")) and found["pairs"] == report["comparisons"] - report["ties"]:
            found["bag_of_words"] = bag_of_words_accuracy(train.store, store)
    return results


def describe_report(name: str, report: dict[str, Any]) -> str:
    """A few lines: pairs read, used and refused, with the first rows of each reason."""
    refused = sum(len(rows) for rows in report["refused"].values())
    lines = [f"{name}: {report['source']}: {report['rows']} pairs read, {report['used']} used, {refused} refused"]
    if report.get("skipped"):
        lines[0] += f", {report['skipped']} left out by stride or limit"
    if report.get("flipped"):
        lines[0] += f", {report['flipped']} labels flipped"
    if report.get("comparisons", report["used"]) != report["used"]:
        lines[0] += f", {report['comparisons']} comparisons"
    if report.get("ties"):
        lines[0] += f", {report['ties']} ties"
    for kind in ("refused", "noted"):
        for reason, rows in sorted(report[kind].items()):
            shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            lines.append(f"  {kind} {len(rows)}: {reason.replace('_', ' ')} (rows {shown})")
    return "\n".join(lines)


def describe_results(results: dict[str, dict[str, float]]) -> str:
    """A line an evaluation set."""
    width = max(len(name) for name in results)
    return "\n".join(
        f"{name:{width}}  accuracy {r['accuracy']:.3f}  95% interval [{r['low']:.3f}, {r['high']:.3f}]"
        f"  longer wins {r['longer_wins']:.3f}"
        + (f"  bag of words {r['bag_of_words']:.3f}" if "bag_of_words" in r else "")
        + (f"  router error {r['router_error']:.3f}" if "router_error" in r else "")
        + (f"  unseen categories {r['unseen_categories']:.0f}" if r.get("unseen_categories") else "")
        + f"  {r['pairs']:.0f} pairs"
        for name, r in results.items()
    )
