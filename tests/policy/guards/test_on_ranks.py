"""Guards on two gloo processes: they see what one process sees, stop together, and roll back what each holds."""

import json

import pytest
from safetensors.torch import load_file

from grmlight.models.shards import read_whole
from grmlight.training.checkpoints import PlainFiles
from tests.policy.guards.program import main, write_pairs
from tests.test_training_runs import largest_difference
from tests.train_run import Run


def train(out, material, *arguments, ranks=1):
    Run(out, *material, *arguments, ranks=ranks, program=main).wait()
    return [json.loads((out / f"guards-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def material(tmp_path_factory, byte_tokenizer):
    return "--data", write_pairs(tmp_path_factory.mktemp("material")), "--tokenizer", byte_tokenizer


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory):
    made = {}

    def run(*arguments):
        if arguments not in made:
            out = tmp_path_factory.mktemp("alone")
            made[arguments] = out, train(out, material, *arguments)[0]
        return made[arguments]

    return run


def without_places(state):
    for guard in state["states"].values():
        guard.get("kept", {}).pop("folder", None)
    return state


@pytest.mark.parametrize("strategy", [[], ["--fsdp"]], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("options", [[], ["--lora"]], ids=["full", "lora"])
def test_two_ranks_stop_and_roll_back_as_one(options, strategy, material, alone, tmp_path):
    one, expected = alone(*options)
    first, second = train(tmp_path, material, *options, *strategy, ranks=2)
    gap = first["states"]["ProxyGoldGap"]
    assert gap["stopped"]
    assert 0 < gap["best"]["step"] < first["step"] < 40
    assert first == second
    found, expected = without_places(first), without_places(json.loads(json.dumps(expected)))
    assert found["step"] == expected["step"]
    # Rewards are counts of letters, and the answers are the same.
    assert found["states"] == expected["states"]
    assert (tmp_path / "csv" / "version_0" / "samples.jsonl").exists()
    # Bit for bit those of the file, and those of one process up to rounding.
    kept = tmp_path / "checkpoints" / f"best-gold-{gap['best']['step']}.ckpt"
    stored = read_whole(kept) if kept.is_dir() else PlainFiles().load_checkpoint(kept)
    weights = {f"model.{name}": tensor for name, tensor in load_file(tmp_path / "weights.safetensors").items()}
    shared = stored["state_dict"].keys() & weights.keys()
    assert len(shared) > 5
    assert all(stored["state_dict"][name].equal(weights[name]) for name in shared)
    assert largest_difference(tmp_path, one) < 1e-4
