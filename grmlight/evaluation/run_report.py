"""RunReport: what was found in the data before step 1, and how the run ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from grmlight.data.files import write_json
from grmlight.evaluation.bag_of_words import bag_of_words_accuracy
from grmlight.evaluation.metrics import wilson_interval
from grmlight.evaluation.pair_figures import FIGURES
from grmlight.evaluation.router_error import FIGURES as ROUTER_FIGURES


class RunReport(Callback):
    """Prints the data's lint before the first step and the results at the end; keeps both as JSON.

    Writes `data.json` (for each set: rows, used, refused and noted rows by reason) and `results.json` (for each
    evaluation set: accuracy with its 95% interval, beside "longer wins" and, after training, a bag of words, and the
    other figures of `docs/metrics.md`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._validated_at = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Right after the data is prepared, before the model is built."""
        directory = run_directory(trainer)
        prepared = getattr(getattr(trainer, "datamodule", None), "prepared", {})
        if not trainer.is_global_zero or not prepared:
            return
        reports = {name: {"source": each.source} | each.report for name, each in prepared.items()}
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
        self._conclude(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After `test`."""
        self._conclude(trainer, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After `validate` alone; within `fit` the results come once, at the end."""
        if not trainer.sanity_checking:
            self._validated_at = trainer.global_step
        if trainer.state.fn == "validate":
            self._conclude(trainer, "val")

    def _conclude(self, trainer: Trainer, stage: str) -> None:
        directory = run_directory(trainer)
        if not trainer.is_global_zero or not (results := evaluation_results(trainer, stage)):
            return
        if directory is not None:
            write_json(directory / "results.json", results)
        print(describe_results(results))


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
        figures = {key: trainer.callback_metrics.get(prefix + key) for key in ("accuracy", "longer_wins", "pairs")}
        if any(value is None for value in figures.values()) or not figures["pairs"]:
            continue
        found = {key: float(value) for key, value in figures.items() if value is not None}
        found["low"], found["high"] = wilson_interval(found["accuracy"], int(found["pairs"]))
        figures = {key: trainer.callback_metrics.get(prefix + key) for key in (*FIGURES, *ROUTER_FIGURES)}
        found |= {key: float(value) for key, value in figures.items() if value is not None}
        results[name] = found
        store = datamodule.prepared[name].store
        if (train := datamodule.prepared.get("train")) and found["pairs"] == len(store):
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
