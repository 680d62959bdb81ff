"""Whole runs in processes of their own: DDP and FSDP2 on several processes against one."""

import json
import random

import pytest
from safetensors.torch import load_file

from tests.train_run import losses, runs_alone, train

WORDS = "the a red green cat dog runs sleeps under over house tree why who said it was not so very well indeed".split()


def write_material(folder, tokenizer):
    """43 pairs of unequal lengths and weights: 8 steps of 6 an epoch, the last with 1."""
    draw = random.Random(7)

    def text(low, high):
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    rows = [
        {"prompt": text(1, 12), "chosen": text(1, 20), "rejected": text(1, 20), "weight": draw.choice([0.25, 1.0, 3.0])}
        for _ in range(43)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--data", str(folder / "pairs.jsonl"), "--tokenizer", str(tokenizer)]


@pytest.fixture(scope="module")
def material(tmp_path_factory, byte_tokenizer):
    return write_material(tmp_path_factory.mktemp("material"), byte_tokenizer)


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory):
    """Runs of one process by their arguments."""
    return runs_alone(tmp_path_factory, material)


def largest_difference(left, right):
    left, right = (load_file(out / "weights.safetensors") for out in (left, right))
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def assert_same_losses(found, expected, tolerance=1e-5):
    one, other = losses(expected), losses(found)
    assert one.keys() == other.keys()
    for step, row in one.items():
        assert other[step]["train/loss"] == pytest.approx(row["train/loss"], rel=tolerance)
        for term in ("train/preference", "train/text_generation", "train/score_l2"):
            assert other[step][term] == pytest.approx(row[term], abs=tolerance * row["train/loss"]), (step, term)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", [[], ["--fsdp"]], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("options", [[], ["--lora", "--recompute"]], ids=["full", "lora-recompute"])
def test_processes_give_the_losses_and_weights_of_one(options, strategy, ranks, material, alone, tmp_path):
    """Float32, no dropout, accumulation 2, clipped gradients, a short last step, unequal lengths and weights."""
    train(tmp_path, *material, *options, *strategy, ranks=ranks)
    assert len(losses(tmp_path)) == 24
    assert_same_losses(tmp_path, alone(*options))
    assert largest_difference(tmp_path, alone(*options)) < 1e-4


def test_sharded_processes_whose_rows_are_padded_run_the_layers_equally_often(material, alone, tmp_path):
    """Their packs would fall into different numbers of length buckets, and one would wait for the other for ever."""
    train(tmp_path, *material, "--padded", "--fsdp", ranks=2)
    assert_same_losses(tmp_path, alone())
    assert largest_difference(tmp_path, alone()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--lora"], ["--recompute"]], ids=["lora", "full-recompute"])
def test_sharded_processes_give_the_losses_of_one(options, material, alone, tmp_path):
    train(tmp_path, *material, *options, "--fsdp", ranks=2)
    assert_same_losses(tmp_path, alone(*options))
    assert largest_difference(tmp_path, alone(*options)) < 1e-4


def test_the_mean_of_each_pack_is_told_apart(material, alone, tmp_path):
    """The comparison above has teeth: the usual mistake moves the weights far beyond its tolerance."""
    train(tmp_path, *material, "--mean", ranks=2)
    assert largest_difference(tmp_path, alone()) > 1e-3


def test_weights_are_the_same_in_any_packing(material, alone, tmp_path):
    train(tmp_path, *material, "--accumulate", "4")
    assert largest_difference(tmp_path, alone()) < 1e-4


@pytest.mark.parametrize(
    ("strategy", "ranks"), [([], 1), (["--fsdp"], 2), (["--fsdp", "--lora"], 2)], ids=["one", "fsdp2", "fsdp2-lora"]
)
def test_bf16_computes_over_float32_weights_and_states(strategy, ranks, material, alone, tmp_path):
    train(tmp_path, *material, "--precision", "bf16-mixed", *strategy, ranks=ranks)
    assert json.loads((tmp_path / "dtypes.json").read_text()) == ["torch.float32"]
    expected = alone(*[option for option in strategy if option == "--lora"])
    assert_same_losses(tmp_path, expected, tolerance=0.02)
    assert losses(tmp_path) != losses(expected)


@pytest.mark.parametrize(("strategy", "ranks"), [([], 1), (["--fsdp"], 2)], ids=["one", "fsdp2"])
def test_adapters_of_a_bf16_backbone_are_float32(strategy, ranks, material, alone, tmp_path):
    train(tmp_path, *material, "--lora", "--dtype", "bfloat16", "--precision", "bf16-mixed", *strategy, ranks=ranks)
    assert json.loads((tmp_path / "dtypes.json").read_text()) == ["torch.float32"]
    assert_same_losses(tmp_path, alone("--lora"), tolerance=0.02)
