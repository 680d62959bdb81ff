"""The learning curve, drawn from a real CSV log."""

from lightning.pytorch.loggers import CSVLogger

from grmlight.evaluation.learning_curve import plot_learning_curve, read_series


def test_the_log_becomes_three_panels(tmp_path):
    log = CSVLogger(tmp_path)
    for step in range(3):
        log.log_metrics(
            {"train/loss": 1.0 / (step + 1), "train/margin": 0.1, "train/ece": 0.2, "speed/mfu": 0.4}, step=step
        )
    log.log_metrics({"val/id/accuracy": 0.7, "val/id/margin": 0.3}, step=2)
    log.save()
    series = read_series(tmp_path / "lightning_logs" / "version_0" / "metrics.csv")
    assert series["train/loss"] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert series["val/id/accuracy"] == [(2, 0.7)]
    loss, accuracy, margin = plot_learning_curve(series).axes
    assert [line.get_label() for line in loss.lines] == ["loss"]
    assert [line.get_label() for line in accuracy.lines] == ["val/id"]
    assert [line.get_label() for line in margin.lines] == ["train", "val/id"]
