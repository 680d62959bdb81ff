"""RunReport: what was found in the data before step 1, and how the run ended."""

from __future__ import annotations

import math
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
from grmlight.evaluation.pair_figures import FIGURES
from grmlight.evaluation.ranks import from_all_ranks
from grmlight.evaluation.router_error import FIGURES as ROUTER_FIGURES
from grmlight.evaluation.row_sums import Bounds, counts_of, intervals, row_sums
from grmlight.evaluation.rows import Rows, prompt_keys, rows_file, rows_of, write_rows


class RunReport(Callback):
    """Prints the data's lint before the first step and the results at the end; keeps both as JSON.

    Writes `data.json` (for each set: rows, used, refused and noted rows by reason), `results.json` (for each
    evaluation set: accuracy with its 95% interval, beside "longer wins" and, after training, a bag of words, and the
    other figures of `docs/metrics.md`), `rows-SET.json` (`grmlight.evaluation.rows`) and `costs.json` (`run_costs`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._validated_at = -1
        self._sums: dict[int, list[Tensor]] = {}

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
        self._sums = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the sums of each row."""
        if isinstance(outputs, Mapping) and "rewards_N" in outputs:
            self._sums.setdefault(dataloader_idx, []).append(row_sums(outputs["rewards_N"], batch))

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After `test`."""
        self._conclude(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After `validate` alone; within `fit` the results come once, at the end."""
        if not trainer.sanity_checking:
            self._validated_at = trainer.global_step
        if trainer.state.fn == "validate":
            self._conclude(trainer, pl_module, "val")

    def _conclude(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        directory = run_directory(trainer)
        everywhere = from_all_ranks([{place: torch.cat(sums).cpu() for place, sums in self._sums.items()}])
        if not trainer.is_global_zero:
            return
        found = _found_rows(trainer, stage, everywhere)
        if not (results := evaluation_results(trainer, stage, found)):
            return
        if directory is not None:
            write_json(directory / "results.json", without_nan(results))
            write_json(directory / "costs.json", run_costs(trainer, pl_module))
            for name, (rows, _) in found.items():
                write_rows(rows_file(directory, name), rows)
        print(describe_results(results))


_Found = dict[str, tuple[Rows, dict[str, Bounds]]]


def _found_rows(trainer: Trainer, stage: str, everywhere: list[dict[int, Tensor]]) -> _Found:
    """For each evaluation set what is right row by row, and the intervals of its figures."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    found = {}
    for place, name in enumerate(getattr(datamodule, f"{stage}_sources", {})):
        if parts := [each[place] for each in everywhere if place in each]:
            sums_RK, prepared = torch.cat(parts), datamodule.prepared[name]
            keys = prompt_keys(prepared.store)
            rows = Rows(prepared.source, prepared.fingerprint, rows_of(counts_of(sums_RK), prepared.store, keys))
            found[name] = rows, intervals(sums_RK, keys)
    return found


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


def evaluation_results(trainer: Trainer, stage: str, found: _Found) -> dict[str, dict[str, float]]:
    """For each evaluation set: the figures with 95% intervals, the rulers, and the numbers of pairs and prompts."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    results = {}
    for name in getattr(datamodule, f"{stage}_sources", {}):
        prefix = f"{stage}/" if name == stage else f"{stage}/{name}/"
        counted = ("accuracy", "longer_wins", "pairs", "groups")
        logged = {key: trainer.callback_metrics.get(prefix + key) for key in counted}
        if any(value is None for value in logged.values()) or not logged["pairs"]:
            continue
        named = (*FIGURES, *DISAGREEMENT, *LOG_RATIOS, *ROUTER_FIGURES)
        logged |= {key: trainer.callback_metrics.get(prefix + key) for key in named}
        figures = {key: float(value) for key, value in logged.items() if value is not None}
        results[name] = figures | (_bounds(*found[name]) if name in found else {"low": math.nan, "high": math.nan})
        store, report = datamodule.prepared[name].store, datamodule.prepared[name].report
        if (train := datamodule.prepared.get("train")) and figures["pairs"] == report["comparisons"] - report["ties"]:
            results[name]["bag_of_words"] = bag_of_words_accuracy(train.store, store)
    return results


def _bounds(rows: Rows, intervals: dict[str, Bounds]) -> dict[str, float]:
    """The accuracy's interval as `low` and `high`, another figure's as `NAME_low` and `NAME_high`."""
    low, high = intervals.get("accuracy", (math.nan, math.nan))
    others = {name: bounds for name, bounds in intervals.items() if name != "accuracy"}
    return {
        "low": low,
        "high": high,
        **{f"{name}_{side}": value for name, each in others.items() for side, value in each._asdict().items()},
        "prompts": len({row.prompt for row in rows.rows}),
    }


def without_nan(results: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Results as JSON takes them: what is not defined is null."""
    return {
        name: {key: None if math.isnan(value) else value for key, value in figures.items()}
        for name, figures in results.items()
    }


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
        f"  longer wins (tokens) {r['longer_wins']:.3f}"
        + (f"  bag of words {r['bag_of_words']:.3f}" if "bag_of_words" in r else "")
        + (f"  router error {r['router_error']:.3f}" if "router_error" in r else "")
        + (f"  unseen categories {r['unseen_categories']:.0f}" if r.get("unseen_categories") else "")
        + f"  {r['pairs']:.0f} pairs"
        for name, r in results.items()
    )
