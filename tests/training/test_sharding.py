"""Strategies and precisions that would train otherwise than they seem are refused in one line."""

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from grmlight.models.shards import states_by_index, states_by_name
from grmlight.training.sharding import FullySharded, check_strategy, check_trainer


class Trained:
    """What a trainer says of itself."""

    def __init__(self, strategy, precision="32-true", gradient_clip_val=None):
        self.strategy, self.precision, self.gradient_clip_val = strategy, precision, gradient_clip_val


@pytest.mark.parametrize(
    ("strategy", "precision", "message"),
    [
        (FSDPStrategy(), "32-true", "append --config configs/fsdp.yaml"),
        (ModelParallelStrategy(1, 1), "32-true", "use grmlight.training.sharding.FullySharded in the place of"),
        (FullySharded(1, 1), "bf16-true", "set trainer.precision to bf16-mixed"),
        (FullySharded(1, 1), "16-true", "set trainer.precision to bf16-mixed"),
        (FullySharded(1, 1), "16-mixed", "set trainer.precision to bf16-mixed"),
    ],
)
def test_scripts_are_refused(strategy, precision, message):
    with pytest.raises(ValueError, match=message):
        check_trainer(Trained(strategy, precision))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_works_is_taken(precision):
    check_trainer(Trained(FullySharded(1, 1), precision))


def test_a_limit_below_zero_would_turn_the_gradient_round():
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        check_trainer(Trained(FullySharded(1, 1), gradient_clip_val=-1.0))


@pytest.mark.parametrize("sizes", [(1, 2), (2, 2), (1, 1), ("auto", 2)])
def test_ranks_that_would_not_share_one_model_are_refused(sizes):
    strategy = FullySharded(*sizes)
    strategy.parallel_devices = [torch.device("cpu")] * 2
    with pytest.raises(ValueError, match="2 processes share one model; set data_parallel_size to 2"):
        strategy.setup_environment()


@pytest.mark.parametrize("name", ["fsdp", "fsdp_cpu_offload", "FSDPStrategy()"])
def test_fsdp1_of_a_configuration_is_refused(name):
    with pytest.raises(ValueError, match="FSDP1 is not offered"):
        check_strategy(name)
    check_strategy("ddp")
    check_strategy(None)


def test_optimizer_states_by_index_and_by_name():
    named = {
        "state": {"b": {"step": 1}, "c": {"step": 2}},
        "param_groups": [{"lr": 0.1, "params": ["c"]}, {"lr": 0.2, "params": ["a", "b"]}],
    }
    indexed = {
        "state": {2: {"step": 1}, 0: {"step": 2}},
        "param_groups": [{"lr": 0.1, "params": [0]}, {"lr": 0.2, "params": [1, 2]}],
    }
    assert states_by_index(named) == indexed
    assert states_by_name(indexed, ["c", "a", "b"]) == named
    with pytest.raises(ValueError, match="trains other parameters"):
        states_by_name(indexed, ["c", "a"])
