"""Sharding a model over ranks (FSDP2), and gathering it again. Parallelism stays outside the model."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from grmlight.models.causal_model import CausalModel
from grmlight.models.ensemble import AnyRewardModel
from grmlight.models.policy_model import PolicyModel

Model = TypeVar("Model", bound=AnyRewardModel | PolicyModel)


def shard(model: AnyRewardModel | PolicyModel, mesh: DeviceMesh, dtype: torch.dtype = torch.float32) -> None:
    """Shard each decoder layer, the parts in float32, and the rest, in place.

    Args:
        model: on the CPU or on each rank's own device.
        mesh: the data-parallel mesh, of one axis.
        dtype: in which the layers are gathered and compute. The shards keep their own dtype, gradients are reduced in
            float32, and the heads stay in float32.
    """
    # A batch is no input to cast: it keeps weights and labels in float32, and its layout as it is.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in [part for part in model.modules() if isinstance(part, CausalModel)]:
        for lm in (part.lm, part.reference, getattr(part, "critic", None)):
            for layer in [] if lm is None else decoder_layers(lm):
                fully_shard(layer, mesh=mesh, mp_policy=policy)
        # Ranks gather weights together, so they must run the layers equally often.
        part.bucketed = False
    for part in model.float32_parts():
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    if isinstance(model, PolicyModel):
        for method in ("generate", "base_states"):
            register_fsdp_forward_method(model, method)


def decoder_layers(lm: PreTrainedModel) -> nn.ModuleList:
    """The list of a decoder's layers, whatever the architecture calls it."""
    count = lm.config.get_text_config(decoder=True).num_hidden_layers
    lists = (module for module in lm.get_decoder().modules() if isinstance(module, nn.ModuleList))
    return next(modules for modules in lists if len(modules) == count)


def reshard(model: nn.Module) -> None:
    """Let go of what a forward without backward has gathered: whoever builds on the model is to find shards."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gather(model: Model) -> Model | None:
    """A whole copy of a sharded model on rank 0 and None on the others; a model that is not sharded, as it is.

    Call it on every rank.
    """
    if not isinstance(model, FSDPModule):
        return model
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if torch.distributed.get_rank() != 0:
        return None
    whole = model.blank()
    whole.load_state_dict({name: tensor for name, tensor in state.items() if "reference" not in name.split(".")})
    return whole
