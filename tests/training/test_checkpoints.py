"""Which checkpoints are kept, where the link points, and how names change hands."""

import subprocess
import sys

import lightning.pytorch as L
import pytest
import torch

from grmlight.training.checkpoints import HIDDEN, Checkpoints, discard, publish, sweep
from tests.test_module import data, reward_module, trainer

__all__ = ["data"]

SCORES = [3.0, 1.0, 2.0, 5.0, 4.0]


class Scores(L.Callback):
    """A figure of each step to monitor."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.callback_metrics["score"] = torch.tensor(SCORES[trainer.global_step - 1])


def kept(data, tmp_path, **options):
    checkpoints = Checkpoints(tmp_path, "{step}", every_n_train_steps=1, save_last=True, **options)
    made = trainer(Scores(), checkpoints, steps=len(SCORES), enable_checkpointing=True)
    made.fit(reward_module(), data())
    for name in {path.name for path in tmp_path.iterdir()}:
        assert torch.load(tmp_path / name, weights_only=True)["state_dict"]
    files = sorted(path.name for path in tmp_path.iterdir() if not path.is_symlink())
    return files, (tmp_path / "last.ckpt").readlink().name


@pytest.mark.parametrize(
    ("options", "files", "last"),
    [
        ({}, ["step=5.ckpt"], "step=5.ckpt"),
        ({"save_top_k": -1}, [f"step={step}.ckpt" for step in range(1, 6)], "step=5.ckpt"),
        ({"save_top_k": 0}, ["last-5.ckpt"], "last-5.ckpt"),
        ({"monitor": "score", "mode": "max", "save_top_k": 2}, ["step=4.ckpt", "step=5.ckpt"], "step=5.ckpt"),
        ({"monitor": "score", "mode": "max"}, ["last-5.ckpt", "step=4.ckpt"], "last-5.ckpt"),
        ({"monitor": "score", "mode": "min"}, ["last-5.ckpt", "step=2.ckpt"], "last-5.ckpt"),
    ],
)
def test_what_is_kept(options, files, last, data, tmp_path):
    assert kept(data, tmp_path, **options) == (files, last)


def test_a_url_is_refused(data):
    made = trainer(Checkpoints("memory://run"), enable_checkpointing=True)
    with pytest.raises(ValueError, match="give a path, not a URL"):
        made.fit(reward_module(), data())


def folder(path, text):
    path.mkdir()
    (path / "shard").write_text(text)
    return path


def file(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("before", [None, folder, file], ids=["nothing", "folder", "file"])
@pytest.mark.parametrize("after", [folder, file])
def test_a_name_changes_hands_whole(before, after, tmp_path):
    target = tmp_path / "a.ckpt"
    if before:
        before(target, "old")
    publish(after(tmp_path / f"{HIDDEN}a.ckpt", "new"), target)
    assert (target / "shard" if after is folder else target).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    discard(target)
    discard(target)
    assert not list(tmp_path.iterdir())


def test_a_kill_while_a_folder_steps_aside_loses_nothing(tmp_path):
    for name in (".saving-one.ckpt", ".saving-old-one.ckpt"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text(name)
    (tmp_path / ".saving-two.ckpt").write_text("half")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["one.ckpt"]
    assert (tmp_path / "one.ckpt" / "part").read_text() == ".saving-old-one.ckpt"


def test_a_folder_that_cannot_be_written_is_known_before_training(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot keep checkpoints .*set checkpoint.dirpath"):
        trainer(Checkpoints(tmp_path / "file" / "checkpoints"), enable_checkpointing=True).fit(reward_module(), data())


def test_a_disk_that_is_full_is_one_line_and_nothing_half_written_stays(tmp_path):
    code = f"""
import resource, torch
from grmlight.training.checkpoints import PlainFiles
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
PlainFiles().save_checkpoint({{'state_dict': {{'weight': torch.zeros(10_000)}}}}, {str(tmp_path / ".saving-a.ckpt")!r})
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert "ValueError: " + str(tmp_path) + ": a checkpoint cannot be written" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_replaced_and_not_what_it_points_to(tmp_path):
    folder(tmp_path / "a.ckpt", "a")
    folder(tmp_path / "b.ckpt", "b")
    (tmp_path / "last.ckpt").symlink_to("a.ckpt")
    (tmp_path / f"{HIDDEN}last.ckpt").symlink_to("b.ckpt")
    publish(tmp_path / f"{HIDDEN}last.ckpt", tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt" / "shard").read_text() == "b"
    assert (tmp_path / "a.ckpt" / "shard").read_text() == "a"
