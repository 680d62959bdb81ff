"""The learning curve, drawn from a real CSV log."""

from lightning.pytorch.loggers import CSVLogger

from grmlight.evaluation.learning_curve import plot_learning_curve, read_series


def test_the_log_becomes_two_panels(tmp_path):
    log = CSVLogger(tmp_path)
    for step in range(3):
        log.log_metrics({"train/loss": 1.0 / (step + 1), "train/learning_rate": 0.1}, step=step)
    log.log_metrics({"val/id/accuracy": 0.7}, step=2)
    log.save()
    series = read_series(tmp_path / "lightning_logs" / "version_0" / "metrics.csv")
    assert series["train/loss"] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert series["val/id/accuracy"] == [(2, 0.7)]
    loss, accuracy = plot_learning_curve(series).axes
    assert [line.get_label() for line in loss.lines] == ["loss"]
    assert [line.get_label() for line in accuracy.lines] == ["val/id"]
