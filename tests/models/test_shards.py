"""Folders of shards: read in part or whole, and refused where they are incomplete or hold more than data."""

import pickle

import pytest
import torch
from torch.distributed import checkpoint as dcp

from grmlight.models.shards import check_shards, is_shards, load_shards, read_index, read_tensors, read_whole, shapes
from grmlight.training.resume import find_checkpoint


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def shards(tmp_path):
    return write(tmp_path / "a.ckpt", 3)


def write(folder, step):
    state = {
        "state_dict": {"model.a": torch.arange(12.0).view(3, 4), "model.b": torch.ones((), dtype=torch.bfloat16)},
        "optimizer_0": {
            "state": {"model.a": {"step": torch.tensor(3.0), "exp_avg": torch.ones(3, 4)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": ["model.a"]}],
        },
    }
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        dcp.save(state, checkpoint_id=folder)
    torch.save({"global_step": step, "loops": {}, "lr_schedulers": [{}]}, folder / "meta.pt")
    return folder


def test_shards_are_read_in_part_and_whole(shards):
    assert is_shards(shards)
    assert shapes(shards, "state_dict.") == {"model.a": (3, 4), "model.b": ()}
    tensors = read_tensors(shards, "state_dict.")
    assert torch.equal(tensors["model.a"], torch.arange(12.0).view(3, 4))
    assert tensors["model.b"].dtype == torch.bfloat16
    whole = read_whole(shards)
    assert whole["global_step"] == 3
    assert whole["state_dict"].keys() == tensors.keys()
    (states,) = whole["optimizer_states"]
    assert states["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}]
    assert states["state"][0]["step"] == 3
    assert torch.equal(states["state"][0]["exp_avg"], torch.ones(3, 4))


def test_what_is_missing_is_named(shards):
    with pytest.raises(ValueError, match=r"Missing key.*model\.c"):
        load_shards({"state_dict": {"model.c": torch.ones(2)}}, shards, alone=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "meta.pt").unlink(), "no complete folder of shards"),
        (lambda folder: (folder / ".metadata").unlink(), "no complete folder of shards"),
        (
            lambda folder: [p.unlink() for p in folder.iterdir() if p.suffix != ".distcp"],
            "no complete folder of shards",
        ),
        (lambda folder: (folder / "__0_0.distcp").unlink(), "its shard __0_0.distcp is missing"),
        (lambda folder: (folder / "__0_0.distcp").write_bytes(b"x"), "its shard __0_0.distcp is cut off"),
        (lambda folder: (folder / "meta.pt").write_bytes(b"x"), "meta.pt: cannot be read safely"),
        (lambda folder: (folder / ".metadata").write_bytes(b"x"), "metadata cannot be read safely"),
        (lambda folder: (folder / ".metadata").write_bytes(pickle.dumps([1])), "no index of shards"),
        (lambda folder: torch.save([1], folder / "meta.pt"), "none of a run"),
    ],
)
def test_an_incomplete_folder_is_refused_and_the_newest_good_one_named(damage, message, shards):
    check_shards(shards)
    good = write(shards.with_name("good.ckpt"), 2)
    damage(shards)
    with pytest.raises(ValueError, match=message) as caught:
        find_checkpoint(str(shards), training=True)
    assert str(caught.value).endswith(f"the newest good one beside it is {good}")
    assert "\n" not in str(caught.value)
    assert find_checkpoint(str(shards.parent), training=True) == good


def test_code_is_never_run(shards, tmp_path):
    trap = tmp_path / "trap"
    for name in ("meta.pt", ".metadata"):
        kept = (shards / name).read_bytes()
        with (shards / name).open("wb") as file:
            torch.save(Evil(trap), file) if name == "meta.pt" else pickle.dump(Evil(trap), file)
        with pytest.raises(ValueError, match="cannot be read safely"):
            check_shards(shards)
        (shards / name).write_bytes(kept)
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        dcp.save({"optimizer_0": {"lr": Evil(trap)}, "state_dict": {}}, checkpoint_id=tmp_path / "evil")
    assert not trap.exists() or trap.unlink() is None
    read_index(tmp_path / "evil")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_shards({"optimizer_0": {"lr": None}}, tmp_path / "evil", alone=True)
    assert not trap.exists()
