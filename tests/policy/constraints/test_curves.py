"""The picture of a run's rewards, thresholds and multipliers."""

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import CSVLogger

from grmlight.policy.constraints import ConstraintCurves
from grmlight.policy.constraints.curves import plot_constraints


def series():
    steps = range(5)
    return {
        f"rollout/{name}": [(step, 0.1 * step) for step in steps]
        for name in (
            *("reward_a", "mixing_a_threshold", "mixing_a_squashed", "mixing_a_multiplier"),
            *("reward_b", "mixing_b_threshold", "watch_gold"),
        )
    }


def test_a_panel_for_each_reward_one_of_multipliers_and_one_of_what_is_watched():
    panels = plot_constraints(series()).axes
    assert [panel.get_ylabel() for panel in panels] == ["a", "b", "squashed multiplier s", ""]
    assert [len(panel.lines) for panel in panels] == [2, 2, 1, 1]


class Logging(L.LightningModule):
    """A module that logs as constrained runs do."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        self.log_dict({name: points[batch_idx][1] for name, points in series().items()})
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_run_leaves_its_picture(tmp_path):
    logger = CSVLogger(tmp_path, "run")
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        callbacks=[ConstraintCurves()],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Logging(), torch.utils.data.DataLoader(torch.zeros(5, 1)))
    assert (tmp_path / "run" / "version_0" / "constraints.png").read_bytes().startswith(b"\x89PNG")
