"""Reward models that generalize, and policies that do not over-optimize them."""

from grmlight.data.datamodule import PairDataModule as PairDataModule
from grmlight.data.options import PrepareOptions as PrepareOptions
from grmlight.experts import ExpertsModule as ExpertsModule
from grmlight.policy.alignment import PolicyModule as PolicyModule
from grmlight.policy.online.module import OnlineModule as OnlineModule
from grmlight.reward import RewardModule as RewardModule
from grmlight.training.checkpoints import Checkpoints as Checkpoints
