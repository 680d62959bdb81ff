"""ConstraintCurves: rewards, thresholds and multipliers of a run as a picture in its directory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from grmlight.data.files import temporary_sibling
from grmlight.evaluation.learning_curve import Series, read_series
from grmlight.evaluation.run_report import run_directory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ConstraintCurves(Callback):
    """Draws `constraints.png` at the end of a run, finished or interrupted, from its `metrics.csv`."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last step."""
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A run that was stopped has a picture too."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        directory = run_directory(trainer)
        if directory is None or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        if not (log := directory / "metrics.csv").exists() or not (series := read_series(log)):
            return
        picture = directory / "constraints.png"
        temporary = temporary_sibling(picture)
        plot_constraints(series).savefig(temporary, dpi=120, format="png")
        temporary.replace(picture)


def plot_constraints(series: Series) -> Figure:
    """A panel a reward with its threshold, one of all squashed multipliers, one for each reward only watched."""
    from matplotlib.figure import Figure

    names = sorted(found[1] for name in series if (found := re.fullmatch(r"rollout/mixing_(.+)_threshold", name)))
    watched = sorted(found[1] for name in series if (found := re.fullmatch(r"rollout/watch_(.+)", name)))
    count = len(names) + 1 + len(watched)
    figure = Figure(figsize=(4.2 * count, 3.6), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for panel, name in zip(panels, names, strict=False):
        for figure_name, label, style in (
            (f"reward_{name}", "reward", "C0"),
            (f"mixing_{name}_threshold", "threshold", "C3--"),
        ):
            if points := series.get(f"rollout/{figure_name}"):
                panel.plot(*zip(*points, strict=True), style, label=label)
        panel.set(ylabel=name)
    for name in names:
        if points := series.get(f"rollout/mixing_{name}_squashed"):
            panels[len(names)].plot(*zip(*points, strict=True), label=name)
    panels[len(names)].set(ylabel="squashed multiplier s", ylim=(-1.05, 1.05))
    for panel, name in zip(panels[len(names) + 1 :], watched, strict=True):
        panel.plot(*zip(*series[f"rollout/watch_{name}"], strict=True), "C2", label=f"{name}, watched")
    for panel in panels:
        panel.set(xlabel="optimizer step")
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize="small", loc="upper left")
    return figure
