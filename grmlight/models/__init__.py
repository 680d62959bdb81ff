"""Models: plain torch, no Lightning."""

from grmlight.models.attention import PACKED as PACKED
from grmlight.models.attention import packed_attention as packed_attention
from grmlight.models.backbone import BackboneConfig as BackboneConfig
from grmlight.models.backbone import LoraOptions as LoraOptions
from grmlight.models.backbone import adapters_off as adapters_off
from grmlight.models.backbone import load_backbone as load_backbone
from grmlight.models.backbone import read_config as read_config
from grmlight.models.expert_config import ExpertsConfig as ExpertsConfig
from grmlight.models.experts import ExpertsModel as ExpertsModel
from grmlight.models.gate import GateResult as GateResult
from grmlight.models.gate import packs as packs
from grmlight.models.heads import HeadConfig as HeadConfig
from grmlight.models.heads import RewardHead as RewardHead
from grmlight.models.loading import load_reward_model as load_reward_model
from grmlight.models.logprobs import LogitTransform as LogitTransform
from grmlight.models.logprobs import token_logps as token_logps
from grmlight.models.memory import TrainingMemory as TrainingMemory
from grmlight.models.memory import training_memory as training_memory
from grmlight.models.modes import evaluating as evaluating
from grmlight.models.outputs import Outputs as Outputs
from grmlight.models.outputs import Signal as Signal
from grmlight.models.parallel import gather as gather
from grmlight.models.parallel import shard as shard
from grmlight.models.reward_model import Packing as Packing
from grmlight.models.reward_model import RewardModel as RewardModel
from grmlight.models.scorer import Scorer as Scorer
