"""Constraints in runs of the real module."""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from grmlight.evaluation.learning_curve import read_series
from grmlight.policy.constraints import ConstraintCurves, Constraints
from grmlight.policy.constraints.trajectory import read_trajectories
from grmlight.training.checkpoints import Checkpoints

from .runs import constraints, low, odd, run, weights

# Lightning asks modules of manual optimization to save what was before the step; ours save complete ones.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using ModelCheckpoint with manual optimization", "ignore:Checkpoint directory .* is not empty"
)


class Counted(Constraints):
    """Counts what the module asks."""

    updates, mixes = 0, 0

    def update(self, reward_to_go):
        self.updates += 1
        return super().update(reward_to_go)

    def mix(self, advantages, batch):
        self.mixes += 1
        return super().mix(advantages, batch)


def test_defect_multipliers_move_with_every_minibatch():
    """They move once an iteration, however many optimizer steps it has."""
    mixing = Counted({"odd": 0.8}, "mu")
    run(mixing, 3, prompts_per_step=2, update={"epochs": 3, "minibatches": 2})
    assert (mixing.updates, mixing.mixes) == (3, 18)


def test_they_learn_from_the_mean_of_the_iteration_s_answers():
    seen_by, mixing = [], constraints()
    update = mixing.update
    mixing.update = lambda reward_to_go: seen_by.append(dict(reward_to_go)) or update(reward_to_go)
    _, seen = run(mixing, 3, update={"epochs": 2})
    for told, figures in zip(seen_by, seen, strict=True):
        assert told["odd"] == pytest.approx(figures["rollout/reward_odd"], abs=1e-6)
        assert told["kl"] == pytest.approx(-figures["rollout/kl"], abs=1e-6)


@pytest.mark.parametrize("threshold", [0.2, 0.8])
def test_a_policy_moves_to_its_threshold_from_either_side(threshold):
    _, seen = run(constraints(odd=threshold), 40, lr=1e-2, update={"epochs": 2})
    values = [figures["rollout/reward_odd"] for figures in seen]
    assert sum(values[:3]) / 3 == pytest.approx(0.5, abs=0.2)
    assert sum(values[-10:]) / 10 == pytest.approx(threshold, abs=0.12)


@pytest.mark.parametrize("variant", ["mu", "xi", "all", "sat"])
def test_each_variant_trains_two_rewards(variant):
    trained, seen = run(Constraints({"odd": 0.7, "low": 0.4}, variant), 2, rewards=(odd, low))
    assert trained.stream_names == ["kl", "odd", "low"]
    assert {"rollout/mixing_odd_threshold", "rollout/mixing_low_threshold"} <= seen[-1].keys()
    assert ("rollout/mixing_odd_multiplier" in seen[-1]) == (variant != "sat")
    assert all(weight.isfinite().all() for weight in weights(trained).values())


def test_sat_s_critic_learns_what_is_optimized():
    """The returns are those of the squared distances: for answers of 0 and 1 and the threshold 1 at most 0."""
    mixing, returns = Constraints({"odd": 1.0}, "sat"), []
    update = mixing.update
    mixing.update = lambda reward_to_go: returns.append(reward_to_go["odd"]) or update(reward_to_go)
    _, seen = run(mixing, 2)
    for returned, figures in zip(returns, seen, strict=True):
        assert returned == pytest.approx(figures["rollout/reward_odd"] - 1, abs=1e-6)


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path):
    """Multipliers with their momentum, and so the weights, bit for bit."""
    whole, _ = run(constraints(), 6, update={"epochs": 2})
    keep = Checkpoints(tmp_path, save_last=True, every_n_train_steps=1)
    stopped, _ = run(constraints(), 6, [keep], stop_after=3, update={"epochs": 2}, enable_checkpointing=True)
    held = stopped.mixing.state_dict()
    assert held["odd"]["multiplier"]["velocity"] != 0
    assert held != whole.mixing.state_dict()
    keep = Checkpoints(tmp_path, save_last=True, every_n_train_steps=1)
    resumed, _ = run(
        constraints(),
        6,
        [keep],
        update={"epochs": 2},
        enable_checkpointing=True,
        ckpt_path=str(tmp_path / "last.ckpt"),
    )
    assert resumed.iterations == 6
    assert resumed.mixing.state_dict() == whole.mixing.state_dict()
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], weight, rtol=0, atol=0)


class Refusing(Constraints):
    """Refuses one iteration's rewards, as it does those that are no number."""

    def __init__(self, at):
        super().__init__({"odd": 0.8}, "xi")
        self.at, self.calls = at, 0

    def update(self, reward_to_go):
        self.calls += 1
        if self.calls == self.at:
            reward_to_go = dict(reward_to_go, odd=float("nan"))
        return super().update(reward_to_go)


def test_an_iteration_that_the_constraints_refuse_is_done_again(tmp_path):
    """The step before it is kept, whatever the interval; the run then goes on as if nothing had been."""

    def options():
        keep = Checkpoints(tmp_path, save_last=True, every_n_train_steps=1000)
        return {"callbacks": [keep], "enable_checkpointing": True, "update": {"epochs": 2}}

    whole, _ = run(constraints(), 5, update={"epochs": 2})
    with pytest.raises(ValueError, match="reward 'odd' is nan"):
        run(Refusing(3), 5, **options())
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 4
    resumed, _ = run(constraints(), 5, ckpt_path=str(tmp_path / "last.ckpt"), **options())
    assert resumed.iterations == 5
    assert resumed.mixing.state_dict() == whole.mixing.state_dict()
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], weight, rtol=0, atol=0)


def test_rewards_that_are_refused_move_no_multiplier():
    mixing = Constraints({"a": 0.5, "b": 0.5}, "xi")
    before = mixing.state_dict()
    with pytest.raises(ValueError, match="reward 'b' is nan"):
        mixing.update({"a": 3.0, "b": float("nan"), "kl": 0.0})
    assert (mixing.state_dict(), mixing.values) == (before, {})


def test_a_run_is_logged_drawn_and_read_for_proxy_points(tmp_path):
    logger = CSVLogger(tmp_path, "run")
    run(constraints(odd=0.7), 5, [ConstraintCurves()], logger=logger)
    folder = tmp_path / "run" / "version_0"
    series = read_series(folder / "metrics.csv")
    for name in ("reward_odd", "mixing_odd_threshold", "mixing_odd_multiplier", "mixing_odd_squashed"):
        assert len(series[f"rollout/{name}"]) == 5
    assert (folder / "constraints.png").exists()
    [trajectory] = read_trajectories([f"odd={folder}"], ["odd"], "rollout/kl")
    assert trajectory.points(["odd"])[:, 0].tolist() == [value for _, value in series["rollout/reward_odd"]]
