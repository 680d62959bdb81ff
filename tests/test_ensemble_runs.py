"""Ensembles trained in processes of their own: DDP and FSDP2 against one process, members against runs of their own."""

import pytest
import torch
from safetensors.torch import load_file

from grmlight.export import export
from grmlight.models import EnsembleModel
from grmlight.training.resume import find_checkpoint
from tests.test_training_runs import assert_same_losses, largest_difference, write_material
from tests.tiny_models import tiny_reward_model
from tests.train_run import losses, runs_alone, train

ARGUMENTS = {
    "models": ["--ensemble", "models"],
    "adapters": ["--ensemble", "adapters", "--lora", "--recompute"],
    "heads": ["--ensemble", "heads"],
}
STATISTICS = ("reward_shift_K", "reward_scale_K")


@pytest.fixture(scope="module")
def material(tmp_path_factory, byte_tokenizer):
    folder = tmp_path_factory.mktemp("material")
    tiny_reward_model("llama", config={"vocab_size": 320}).lm.save_pretrained(folder / "lm")
    return [*write_material(folder, byte_tokenizer), "--backbone", folder / "lm", "--epochs", "1"]


@pytest.fixture(scope="module")
def ran(material, tmp_path_factory):
    """Runs of one process, by their arguments."""
    return runs_alone(tmp_path_factory, material)


@pytest.mark.parametrize(
    ("members", "strategy"),
    [
        ("adapters", []),
        ("adapters", ["--fsdp"]),
        pytest.param("models", [], marks=pytest.mark.slow),
        ("models", ["--fsdp"]),
        pytest.param("heads", [], marks=pytest.mark.slow),
        pytest.param("heads", ["--fsdp"], marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "fsdp2" if value else "ddp",
)
def test_processes_give_the_losses_and_weights_of_one(members, strategy, material, ran, tmp_path):
    train(tmp_path, *material, *ARGUMENTS[members], *strategy, ranks=2)
    expected = ran(*ARGUMENTS[members])
    assert_same_losses(tmp_path, expected)
    assert largest_difference(tmp_path, expected) < 1e-4
    for step, row in losses(expected).items():
        for name in ("train/disagreement", "train/margin_disagreement"):
            assert row[name] > 0
            assert losses(tmp_path)[step][name] == pytest.approx(row[name], rel=1e-3)


@pytest.mark.parametrize("members", ["models", "adapters"])
def test_terms_are_the_means_of_runs_of_the_members_alone(members, ran):
    """At the first step nothing was trained yet: runs of seeds 0, 1 and 2 begin as the three members do."""
    found = losses(ran(*ARGUMENTS[members]))[1]
    runs = [losses(ran(*ARGUMENTS[members][2:], "--seed", str(seed)))[1] for seed in range(3)]
    for term in ("train/loss", "train/preference", "train/text_generation", "train/score_l2"):
        values = [row[term] for row in runs]
        assert found[term] == pytest.approx(sum(values) / 3, rel=1e-5)
    assert len({row["train/preference"] for row in runs}) == 3


@pytest.mark.parametrize("members", ARGUMENTS)
def test_a_checkpoint_becomes_the_ensemble_that_training_wrote(members, ran, tmp_path):
    """The statistics in the checkpoint are those of its own step."""
    run = ran(*ARGUMENTS[members], "--save_every", "4")
    export(run / "checkpoints", tmp_path / "a")
    export(run / "csv/version_0", tmp_path / "b")
    names = {str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*")}
    for other in (tmp_path / "b", run / "csv/version_0/model"):
        assert {str(path.relative_to(other)) for path in other.rglob("*")} == names
        assert (other / "grmlight.json").read_text() == (tmp_path / "a/grmlight.json").read_text()
        for name in names:
            if name.endswith(".safetensors"):
                left, right = load_file(tmp_path / "a" / name), load_file(other / name)
                assert left.keys() == right.keys()
                for key, tensor in left.items():
                    torch.testing.assert_close(tensor, right[key], rtol=0, atol=1e-6)
    model = EnsembleModel.from_pretrained(tmp_path / "a")
    assert model.config.aggregation == "wco"
    assert not torch.equal(model.reward_scale_K, torch.ones(3))


@pytest.mark.parametrize(
    "strategy", [[], pytest.param(["--fsdp"], marks=pytest.mark.slow)], ids=lambda value: "shards" if value else "file"
)
def test_a_killed_ensemble_goes_on_bit_for_bit(strategy, material, ran, tmp_path):
    options, ranks = [*ARGUMENTS["adapters"], *strategy], 2 if strategy else 1
    whole = tmp_path / "whole" if strategy else ran(*options)
    if strategy:
        train(whole, *material, *options, ranks=ranks)
    train(tmp_path / "cut", *material, *options, "--kill_at", "5", ranks=ranks, expect=-9)
    resume = ["--resume", find_checkpoint(str(tmp_path / "cut"), training=True)]
    train(tmp_path / "cut", *material, *options, *resume, ranks=ranks)
    assert losses(tmp_path / "cut") == losses(whole)
    left, right = (load_file(out / "weights.safetensors") for out in (whole, tmp_path / "cut"))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert all(name in left for name in STATISTICS)


def test_a_sharded_checkpoint_becomes_the_ensemble_that_training_wrote(material, tmp_path):
    train(tmp_path / "run", *material, *ARGUMENTS["adapters"], "--fsdp", "--save_every", "4", ranks=2)
    export(tmp_path / "run/checkpoints", tmp_path / "a")
    wanted = load_file(tmp_path / "run/csv/version_0/model/members.safetensors")
    found = load_file(tmp_path / "a/members.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)
