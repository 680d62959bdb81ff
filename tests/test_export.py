"""Model folders made of what runs leave: equal to what training itself writes, alone from the checkpoint."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from grmlight.export import export
from grmlight.models import RewardModel
from grmlight.training.resume import find_checkpoint
from tests.test_training_runs import write_material
from tests.tiny_models import tiny_reward_model
from tests.train_run import losses, train

KINDS = {
    "file": ([], 1),
    "file-lora": (["--lora"], 1),
    "shards": (["--fsdp"], 2),
    "shards-lora": (["--fsdp", "--lora"], 2),
}


@pytest.fixture(scope="module")
def material(tmp_path_factory, byte_tokenizer):
    return write_material(tmp_path_factory.mktemp("material"), byte_tokenizer)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The folder of a pretrained model."""
    folder = tmp_path_factory.mktemp("backbone") / "lm"
    tiny_reward_model("llama", config={"vocab_size": 320}).lm.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ran(material, backbone, tmp_path_factory):
    """Runs on the pretrained model, by kind; each ends with a checkpoint."""
    made = {}

    def run(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            options, ranks = KINDS[kind]
            train(
                made[kind],
                *material,
                *options,
                "--backbone",
                backbone,
                "--epochs",
                "1",
                "--save_every",
                "4",
                ranks=ranks,
            )
        return made[kind]

    return run


def assert_same_model(folder, other):
    assert {path.name for path in folder.iterdir()} == {path.name for path in other.iterdir()}
    for name in ("config.json", "grmlight.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_text() == (other / name).read_text(), name
    left, right = (load_file(each / "model.safetensors") for each in (folder, other))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_becomes_the_model_that_training_wrote(kind, ran, backbone, tmp_path):
    run = ran(kind)
    moved = tmp_path / "moved"
    shutil.copytree(run / "checkpoints", moved, symlinks=True)
    assert export(moved / "last.ckpt", tmp_path / "a").name == "epoch=0-step=8.ckpt"
    assert export(moved, tmp_path / "b").name == "epoch=0-step=8.ckpt"
    for name in "ab":
        assert_same_model(tmp_path / name, run / "csv/version_0/model")
    RewardModel.from_pretrained(tmp_path / "a")


def test_a_finished_run_is_its_model(ran, tmp_path):
    run = ran("shards") / "csv/version_0"
    assert export(run, tmp_path / "a") == run / "model"
    assert export(run / "model", tmp_path / "b") == run / "model"
    assert_same_model(tmp_path / "a", run / "model")
    assert_same_model(tmp_path / "b", run / "model")


@pytest.mark.parametrize("kind", ["file-lora", "shards-lora"])
def test_frozen_weights_are_left_out_and_must_be_the_same_again(kind, ran, material, backbone, tmp_path):
    run = ran(kind)
    full = ran(kind.removesuffix("-lora"))
    sizes = [sum(p.stat().st_size for p in (each / "checkpoints").rglob("*") if p.is_file()) for each in (run, full)]
    assert sizes[0] < 0.7 * sizes[1]
    other = tmp_path / "other"
    tiny_reward_model("llama", seed=1, config={"vocab_size": 320}).lm.save_pretrained(other)
    options, ranks = KINDS[kind]
    resume = ["--resume", find_checkpoint(str(run / "checkpoints"), training=True)]
    train(tmp_path / "refused", *material, *options, *resume, "--backbone", other, ranks=ranks, expect=1)
    assert "left out the frozen weights" in (tmp_path / "refused/output-0.txt").read_text()
    two_epochs = [*material, *options, "--backbone", backbone, "--epochs", "2"]
    train(tmp_path / "whole", *two_epochs, ranks=ranks)
    train(tmp_path / "cut", *two_epochs, "--kill_at", "10", ranks=ranks, expect=-9)
    resume = ["--resume", find_checkpoint(str(tmp_path / "cut"), training=True)]
    train(tmp_path / "cut", *two_epochs, *resume, ranks=ranks)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_a_checkpoint_of_another_model_is_one_line(kind, ran, material, tmp_path):
    run = ran(kind)
    options, ranks = KINDS[kind]
    again = ["--resume", find_checkpoint(str(run / "checkpoints"), training=True)]
    train(tmp_path, *material, *options, *again, ranks=ranks, expect=1)
    (line,) = {line for line in (tmp_path / "output-0.txt").read_text().splitlines() if line.startswith("ValueError")}
    assert "is of another model" in line
    assert "mlp" in line


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "without a complete checkpoint"),
        (lambda path: path.write_text("x"), "cannot be read safely"),
        (lambda path: torch.save({"state_dict": {}}, path), "does not say of which model"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{}")), "is no reward model"),
    ],
)
def test_what_holds_no_model_is_one_line(make, message, tmp_path):
    make(tmp_path / "source")
    with pytest.raises(ValueError, match=message) as caught:
        export(tmp_path / "source", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_other_files_is_left_alone(ran, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files; name an empty or a new folder with --out"):
        export(ran("shards") / "csv/version_0", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
