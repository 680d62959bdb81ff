"""Online runs in real processes: the same losses on any number of ranks, and a SIGKILL loses no answer."""

import json

import pytest

from grmlight.training.resume import newest_checkpoint
from tests.policy.online.run import main
from tests.test_training_runs import largest_difference
from tests.train_run import Run, losses, runs_alone

SLOW = pytest.mark.slow


def train(out, *arguments, ranks=1, expect=0):
    Run(out, *map(str, arguments), ranks=ranks, program=main).wait(expect)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs of one process that nothing stopped, by their arguments."""
    return runs_alone(tmp_path_factory, make=train)


def without(rows, *names):
    return {step: {name: row[name] for name in row if name not in names} for step, row in rows.items()}


OWN_TIME = "rollout/sampling_share"
RANKED = (OWN_TIME, "train/imbalance", "train/sharing")


@pytest.mark.parametrize(
    ("arguments", "strategy"),
    [
        ((), []),
        (("--lora", "--critic", "apart"), []),
        ((), ["--fsdp"]),
        (("--lora",), ["--fsdp"]),
        pytest.param(("--critic", "apart"), ["--fsdp"], marks=SLOW),
        pytest.param(("--lora", "--critic", "apart"), ["--fsdp"], marks=SLOW),
        pytest.param(("--advantage", "grpo"), [], marks=SLOW),
        pytest.param(("--mixing",), [], marks=SLOW),
    ],
)
def test_two_ranks_have_the_losses_of_one(arguments, strategy, alone, tmp_path):
    train(tmp_path, *arguments, *strategy, ranks=2)
    found, expected = losses(tmp_path), losses(alone(*arguments))
    assert len(expected) == 6
    assert max(row["train/clipped"] for row in expected.values()) > 0
    assert expected[24]["rollout/kl"] != 0
    for step, row in without(expected, *RANKED).items():
        # What the optimizer makes of rounding adds up from step to step.
        assert without(found, *RANKED)[step] == pytest.approx(row, rel=1e-5 * step, abs=1e-6 * step), step
    assert largest_difference(alone(*arguments), tmp_path) < 1e-4


@pytest.mark.parametrize("strategy", [[], pytest.param(["--fsdp"], marks=SLOW)])
def test_two_ranks_have_the_held_out_figures_of_one(strategy, alone, tmp_path):
    """Three batches of 4, 4 and 3 prompts; and looking at them leaves the training what it was."""
    train(tmp_path, "--held_out", *strategy, ranks=2)
    expected = json.loads((alone("--held_out") / "held_out-0.json").read_text())
    assert expected["val/kl"] != 0
    assert {"val/score", "val/reward_digits", "val/reward_length"} <= expected.keys()
    for rank in range(2):
        found = json.loads((tmp_path / f"held_out-{rank}.json").read_text())
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert largest_difference(alone("--held_out"), alone()) == 0.0


@pytest.mark.parametrize(
    ("moment", "sampled"),
    [("sampled:4", 6), pytest.param("rewarded:4", 6, marks=SLOW), pytest.param("sampled:1", 6, marks=SLOW)],
)
def test_killed_before_the_update(moment, sampled, alone, tmp_path):
    """The fourth iteration's answers were there: the run goes on from the second's end, and samples none again."""
    train(tmp_path, "--kill_in", moment, expect=-9)
    found = newest_checkpoint(tmp_path, training=True)
    train(tmp_path, *([] if found is None else ["--resume", found]))
    assert without(losses(tmp_path), OWN_TIME) == without(losses(alone()), OWN_TIME)
    assert largest_difference(alone(), tmp_path) == 0.0
    assert len((tmp_path / "calls.txt").read_text().split()) == sampled


def test_killed_with_answers_of_its_own_and_rewards_mixed(alone, tmp_path):
    arguments = ("--own_answers", "--mixing")
    train(tmp_path, *arguments, "--kill_at", 12, expect=-9)
    train(tmp_path, *arguments, "--resume", newest_checkpoint(tmp_path, training=True))
    assert without(losses(tmp_path), OWN_TIME) == without(losses(alone(*arguments)), OWN_TIME)
    assert largest_difference(alone(*arguments), tmp_path) == 0.0
    coefficients = [row["rollout/kl_coefficient"] for row in losses(tmp_path).values()]
    assert len(set(coefficients)) == 6


def test_rollouts_that_were_learned_from_go(alone):
    kept = sorted(path.name for path in (alone() / "rollouts").iterdir())
    assert kept == [f"{number:06}.{end}" for number in (4, 5) for end in ("json", "jsonl")]
