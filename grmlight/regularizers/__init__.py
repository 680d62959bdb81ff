"""Callbacks that add a penalty to the loss. One of one's own is a class with one method, `penalty`."""

from grmlight.regularizers.base import Mixing as Mixing
from grmlight.regularizers.base import Ramp as Ramp
from grmlight.regularizers.base import Regularizer as Regularizer
from grmlight.regularizers.direct_preference import DirectPreference as DirectPreference
from grmlight.regularizers.scores import PositiveReward as PositiveReward
from grmlight.regularizers.scores import RewardCentering as RewardCentering
from grmlight.regularizers.scores import ScoreL2 as ScoreL2
from grmlight.regularizers.text_generation import TextGeneration as TextGeneration
