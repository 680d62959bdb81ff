"""Guards on two gloo processes: they see what one process sees, stop together, and roll back what each holds."""

import copy
import json

import pytest
from safetensors.torch import load_file

from grmlight.models.shards import read_whole
from grmlight.training.checkpoints import PlainFiles
from tests.policy.guards.program import main
from tests.policy.guards.world import SELDOM, pairs
from tests.test_training_runs import largest_difference
from tests.train_run import Run, losses


def train(out, material, *arguments, ranks=1):
    Run(out, *material, *arguments, ranks=ranks, program=main).wait()
    return [json.loads((out / f"guards-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return "--data", pairs(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory):
    made = {}

    def run(*arguments):
        if arguments not in made:
            out = tmp_path_factory.mktemp("alone")
            made[arguments] = out, train(out, material, *arguments)[0]
        return made[arguments]

    return lambda *arguments: copy.deepcopy(run(*arguments))


@pytest.mark.parametrize("strategy", [[], ["--fsdp"]], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("options", [[], ["--lora"]], ids=["full", "lora"])
def test_two_ranks_stop_and_roll_back_as_one(options, strategy, material, alone, tmp_path):
    one, expected = alone(*options)
    first, second = train(tmp_path, material, *options, *strategy, ranks=2)
    gap = first["states"]["ProxyGoldGap"]
    assert gap["stopped"]
    assert 0 < gap["best"]["step"] < first["step"] < 24
    assert first == second
    assert first["step"] == expected["step"]
    # The same answers; their KL is a sum that ranks round otherwise.
    rows, expected_rows = (each["states"]["SampleTable"]["rows"] for each in (first, expected))
    for row, other in zip(rows, expected_rows, strict=True):
        assert row.pop("kl_k1") == pytest.approx(other.pop("kl_k1"), rel=1e-3, abs=1e-4)
    assert rows == expected_rows
    other = expected["states"]["ProxyGoldGap"]
    assert {**gap, "kept": ""} == {**other, "kept": ""}
    # Bit for bit those of the file, and those of one process up to rounding.
    kept = tmp_path / "checkpoints" / f"best-gold-{gap['best']['step']}.ckpt"
    stored = read_whole(kept) if kept.is_dir() else PlainFiles().load_checkpoint(kept)
    weights = {f"model.{name}": tensor for name, tensor in load_file(tmp_path / "weights.safetensors").items()}
    shared = stored["state_dict"].keys() & weights.keys()
    assert len(shared) > 5
    assert all(stored["state_dict"][name].equal(weights[name]) for name in shared)
    assert largest_difference(tmp_path, one) < 1e-4


def test_a_checkpoint_before_the_first_step_starts_the_same_run(material, tmp_path):
    """Sharded: it holds no optimizer states, which torch would make up; neither does the run that writes it."""
    first, again = tmp_path / "first", tmp_path / "again"
    for folder in (first, again):
        folder.mkdir()
    arguments = (*material, "--fsdp", "--gold", SELDOM)
    (state, _) = train(first, arguments, ranks=2)
    assert (state["step"], state["states"]["ProxyGoldGap"]["best"]["step"]) == (4, 0)
    train(again, arguments, "--resume", first / "checkpoints" / "best-gold-0.ckpt", ranks=2)
    one, other = losses(first), losses(again)
    assert [one[step]["train/loss"] for step in one] == [other[step]["train/loss"] for step in other]
    assert largest_difference(first, again) == 0.0
