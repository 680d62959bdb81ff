"""LearningCurve: a picture of the run in its directory, drawn from the CSV log, and what became of the answers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from grmlight.evaluation.answer_figures import Series, describe_answers, is_online, plot_answers
from grmlight.evaluation.pair_figures import NO_TERMS
from grmlight.evaluation.run_report import run_directory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LearningCurve(Callback):
    """Draws `learning_curve.png` after each validation and at the end, from the run's `metrics.csv`.

    At the end of a policy's run it prints in a line what became of its answers.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After each validation, the sanity check left out."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last step."""
        if text := describe_answers(self._draw(trainer)):
            print(text)

    def _draw(self, trainer: Trainer) -> Series:
        """Returns what was drawn; nothing where nothing is kept, and on all ranks but the first."""
        directory = run_directory(trainer)
        if directory is None or not trainer.is_global_zero:
            return {}
        for logger in trainer.loggers:
            logger.save()
        if not (log := directory / "metrics.csv").exists():
            return {}
        series = read_series(log)
        figure = plot_answers(series) if is_online(series) else plot_learning_curve(series)
        figure.savefig(directory / "learning_curve.png", dpi=120)
        return series


def read_series(path: Path) -> Series:
    """The logged figures by name, each as (step, value)."""
    series: Series = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    series.setdefault(name, []).append((int(row["step"]), float(value)))
    return series


def plot_learning_curve(series: Series) -> Figure:
    """Three panels over optimizer steps: the terms of the training loss, accuracy and reward margin by set."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(14, 4), layout="constrained")
    loss, accuracy, margin = figure.subplots(1, 3)
    for name, points in sorted(series.items()):
        steps, values = zip(*points, strict=True)
        group, _, figure_name = name.rpartition("/")
        if figure_name == "accuracy":
            accuracy.plot(steps, values, label=group, marker=".")
        elif figure_name == "margin":
            margin.plot(steps, values, label=group, marker=".")
        elif group == "train" and figure_name not in NO_TERMS and not figure_name.endswith("_weight"):
            loss.plot(steps, values, label=figure_name)
    loss.set(xlabel="optimizer step", ylabel="training loss, unweighted terms", yscale="log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter(NullFormatter())
    accuracy.set(xlabel="optimizer step", ylabel="accuracy", ylim=(0.3, 1.0))
    margin.set(xlabel="optimizer step", ylabel="mean reward margin")
    for panel in (loss, accuracy, margin):
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize="small")
    return figure
