"""What is no checkpoint of a run is said in one line before anything is built."""

import pickle

import pytest
import torch

from grmlight.resume import check_checkpoint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "no checkpoint that can be read"),
        (b"just text", "no checkpoint that can be read"),
        (pickle.dumps({"state_dict": check_checkpoint}), "no checkpoint that can be read safely"),
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
        check_checkpoint(str(path), training=True)
    assert "\n" not in str(caught.value)


def test_a_cut_off_checkpoint_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.ones(1000)}, "loops": {}, "optimizer_states": []}, path)
    check_checkpoint(str(path), training=True)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no checkpoint that can be read"):
        check_checkpoint(str(path), training=True)


def test_weights_alone_are_enough_to_evaluate(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    check_checkpoint(str(tmp_path / "a.ckpt"), training=False)
