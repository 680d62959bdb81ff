"""The laboratory: an embedded world with an exact gold reward, small enough to train on any machine."""

from grmlight.lab.capabilities import WorldExperts as WorldExperts
from grmlight.lab.datamodule import WorldData as WorldData
from grmlight.lab.files import WorldFiles, world_files
from grmlight.lab.gold import Gold
from grmlight.lab.gold_reward import GoldReward as GoldReward
from grmlight.lab.prompts import WorldPrompts as WorldPrompts
from grmlight.lab.world import Prompt, Split, World

__all__ = ["Gold", "Prompt", "Split", "World", "WorldFiles", "world_files"]
