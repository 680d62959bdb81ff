"""What is no checkpoint of a run is said in one line before anything is built."""

import pickle

import pytest
import torch

from grmlight.training.resume import find_checkpoint, last_checkpoint, newest_checkpoint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "cannot be read safely"),
        (b"just text", "cannot be read safely"),
        (pickle.dumps({"state_dict": find_checkpoint}), "cannot be read safely"),
        ({"state_dict": find_checkpoint}, "it holds more than tensors and plain data"),
        ({"state_dict": {}}, "no checkpoint of a run"),
        ([1, 2], "no checkpoint of a run"),
    ],
)
def test_bad_files(content, message, tmp_path):
    path = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        find_checkpoint(str(path), training=True)
    assert "\n" not in str(caught.value)


def write(path, step):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"a": torch.ones(1000)}, "loops": {}, "optimizer_states": [], "global_step": step}, path)
    return path


def test_a_cut_off_checkpoint_is_refused_and_the_newest_good_one_named(tmp_path):
    path = write(tmp_path / "c.ckpt", 9)
    assert find_checkpoint(str(path), training=True) == path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read safely"):
        find_checkpoint(str(path), training=True)
    write(tmp_path / "a.ckpt", 3)
    write(tmp_path / "b.ckpt", 6)
    with pytest.raises(ValueError, match=r"the newest good one beside it is .*b\.ckpt$"):
        find_checkpoint(str(path), training=True)


def test_a_run_directory_means_its_newest_complete_checkpoint(tmp_path):
    good = write(tmp_path / "checkpoints" / "a.ckpt", 12)
    write(tmp_path / "checkpoints" / "b.ckpt", 9)
    write(tmp_path / "checkpoints" / ".saving-d.ckpt", 30)
    cut = write(tmp_path / "checkpoints" / "c.ckpt", 15)
    cut.write_bytes(cut.read_bytes()[:-100])
    torch.save({"state_dict": {}, "global_step": 20}, tmp_path / "checkpoints" / "weights.ckpt")
    (tmp_path / "checkpoints" / "last.ckpt").symlink_to("b.ckpt")
    assert find_checkpoint(str(tmp_path), training=True) == good
    assert find_checkpoint(str(tmp_path / "checkpoints"), training=True) == good
    assert newest_checkpoint(tmp_path, training=False).name == "weights.ckpt"
    assert find_checkpoint(str(tmp_path / "checkpoints/last.ckpt"), training=True).name == "b.ckpt"


def test_last_goes_on_or_starts_anew(tmp_path):
    assert last_checkpoint(str(tmp_path / "none")) is None
    path = write(tmp_path / "a.ckpt", 3)
    assert last_checkpoint(str(tmp_path)) == path
    with pytest.raises(ValueError, match=r"needs checkpoint\.dirpath"):
        last_checkpoint(None)


def test_weights_alone_are_enough_to_evaluate(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    find_checkpoint(str(tmp_path / "a.ckpt"), training=False)
