"""Whole alignment runs in processes of their own: DDP and FSDP2 against one process, killed runs, saved policies."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from grmlight.evaluation.curves import read_curves
from grmlight.models import PolicyModel
from grmlight.training.resume import newest_checkpoint
from tests.test_training_runs import largest_difference, write_material
from tests.train_run import backbone, losses, parse, runs_alone, train

SLOW = pytest.mark.slow
STRATEGIES = {"ddp": [], "fsdp2": ["--fsdp"]}


@pytest.fixture(scope="module")
def material(tmp_path_factory, byte_tokenizer):
    return write_material(tmp_path_factory.mktemp("material"), byte_tokenizer)


@pytest.fixture(scope="module")
def alone(material, tmp_path_factory):
    """Runs of one process by their arguments."""
    return runs_alone(tmp_path_factory, material)


def assert_same_training(found, expected):
    one, other = losses(expected), losses(found)
    assert one.keys() == other.keys() == set(range(1, 25))
    for step, row in one.items():
        assert other[step]["train/loss"] == pytest.approx(row["train/loss"], rel=1e-5), step
        assert other[step].keys() == row.keys()
        for name in ("train/preference", "train/anchor", "train/chosen_logps", "train/rejected_log_ratio"):
            if name in row:
                # Ratios are differences of log-probs of up to a hundred nats.
                assert other[step][name] == pytest.approx(row[name], rel=1e-5, abs=2e-4), (step, name)
    assert largest_difference(found, expected) < 1e-4


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("dpo", []),
        ("rpo", ["--lora"]),
        pytest.param("rpo-reference", [], marks=SLOW),
        pytest.param("rpo-reference", ["--lora"], marks=SLOW),
        pytest.param("sft", [], marks=SLOW),
        pytest.param("sft", ["--lora"], marks=SLOW),
        pytest.param("dpo", ["--reference", "copy"], marks=SLOW),
        pytest.param("ipo", ["--lora", "--recompute"], marks=SLOW),
        pytest.param("slic", [], marks=SLOW),
        pytest.param("rpo", ["--padded"], marks=SLOW),
    ],
    ids=lambda each: each if isinstance(each, str) else "-".join(each).replace("--", "") or "full",
)
def test_two_processes_give_the_losses_and_weights_of_one(objective, options, strategy, material, alone, tmp_path):
    """Float32, no dropout, accumulation 2, clipped gradients, a short last step, unequal lengths and weights."""
    arguments = ["--objective", objective, *options]
    train(tmp_path, *material, *arguments, *STRATEGIES[strategy], ranks=2)
    assert_same_training(tmp_path, alone(*arguments))


def test_weights_are_the_same_in_any_packing(material, alone, tmp_path):
    train(tmp_path, *material, "--objective", "rpo", "--accumulate", "3")
    assert_same_training(tmp_path, alone("--objective", "rpo"))


def test_the_reference_of_the_store_is_that_of_a_copy(material, alone, tmp_path):
    train(tmp_path, *material, "--objective", "dpo", "--reference", "copy")
    assert_same_training(tmp_path, alone("--objective", "dpo"))


def test_an_anchor_on_the_reference_goes_on_with_the_same_samples(material, alone, tmp_path):
    """They are drawn again from the start model when a killed run is resumed, whatever the weights are by then."""
    exact = ("--objective", "rpo-reference")
    train(tmp_path, *material, *exact, "--kill_at", 11, expect=-9)
    train(tmp_path, *material, *exact, "--resume", newest_checkpoint(tmp_path, training=True))
    assert losses(tmp_path) == losses(alone(*exact))
    assert losses(tmp_path)[1]["train/anchor"] != losses(alone("--objective", "rpo"))[1]["train/anchor"]


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=SLOW), "fsdp2"])
def test_two_processes_measure_the_curve_of_one(strategy, material, alone, tmp_path):
    """Ranks share seven prompts, four and three of them; and whoever measures trains as who does not."""
    arguments = ["--objective", "dpo", "--measure"]
    train(tmp_path, *material, *arguments, *STRATEGIES[strategy], ranks=2)
    whole = alone(*arguments)
    assert losses(whole) == losses(alone("--objective", "dpo"))
    assert_same_training(tmp_path, whole)
    one, two = (read_curves(next(out.glob("csv/version_*/curve.jsonl"))) for out in (whole, tmp_path))
    assert [point.step for point in one] == [point.step for point in two] == [0, 6, 12, 18, 24]
    assert abs(one[-1].kl) > 0.01
    for ours, theirs in zip(one, two, strict=True):
        assert theirs.kl == pytest.approx(ours.kl, rel=1e-3, abs=1e-4)
        assert (theirs.gold, theirs.standard_error) == (ours.gold, ours.standard_error)


def test_rpo_holds_what_dpo_lets_fall(alone):
    """A pull of one half: the chosen responses end more probable, and the anchor is logged without its weight."""
    anchored, free = losses(alone("--objective", "rpo"))[24], losses(alone("--objective", "dpo"))[24]
    assert anchored["train/chosen_logps"] > free["train/chosen_logps"]
    assert anchored["train/loss"] == pytest.approx(
        anchored["train/preference"] + 0.15 * anchored["train/anchor"], rel=1e-5
    )


@pytest.mark.parametrize("options", [[], ["--lora"]], ids=["full", "lora"])
def test_a_saved_policy_is_a_plain_causal_lm(options, material, alone):
    """`model/` loads in transformers, with the logits of the trained model."""
    out = alone("--objective", "rpo", *options)
    (folder,) = out.glob("csv/version_*/model")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert not [name for name in load_file(folder / "model.safetensors") if "lora" in name or name.startswith("v_head")]
    given = parse(["--out", str(out), *map(str, material), *options])
    trained = PolicyModel(backbone(given)).eval()
    trained.load_state_dict(load_file(out / "weights.safetensors"))
    trained.lm.set_attn_implementation("eager")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, trained.lm(ids).logits, rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert json.loads((folder / "grmlight.json").read_text())["kind"] == "policy"


def test_a_run_killed_between_two_saves_goes_on_bit_for_bit(material, alone, tmp_path):
    exact = ("--objective", "rpo", "--dropout", "0.2", "--log_every", "2")
    train(tmp_path, *material, *exact, "--kill_at", 11, expect=-9)
    train(tmp_path, *material, *exact, "--resume", newest_checkpoint(tmp_path, training=True))
    assert losses(tmp_path) == losses(alone(*exact))
    assert largest_difference(alone(*exact), tmp_path) == 0.0


@SLOW
@pytest.mark.parametrize("objective", ["sft", "dpo", "ipo", "slic"])
@pytest.mark.parametrize("kind", [[], ["--lora"], ["--fsdp"]], ids=["one", "lora", "fsdp2"])
def test_killed_runs_go_on_bit_for_bit(objective, kind, material, tmp_path):
    exact, ranks = ["--objective", objective, "--dropout", "0.2", *kind], 2 if kind == ["--fsdp"] else 1
    train(tmp_path / "whole", *material, *exact, ranks=ranks)
    for kill_at in (8, 17):
        resume = newest_checkpoint(tmp_path / "cut", training=True) if (tmp_path / "cut").exists() else None
        again = ["--resume", resume] if resume else []
        train(tmp_path / "cut", *material, *exact, *again, "--kill_at", kill_at, ranks=ranks, expect=-9)
    newest = newest_checkpoint(tmp_path / "cut", training=True)
    train(tmp_path / "cut", *material, *exact, "--resume", newest, ranks=ranks)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert largest_difference(tmp_path / "cut", tmp_path / "whole") == 0.0
