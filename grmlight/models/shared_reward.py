"""SharedReward: a reward model's adapters and head on a policy's backbone, so that one backbone does for both.

Notable decisions:

- The adapters act through hooks on the backbone's linear layers, for one forward at a time, with the policy's own off.
  Sets inside peft's layers, as an ensemble's are, would be in the policy's state dict, its saved folder, its frozen
  weights and its shards; these are in none of them, and may have another rank and other targets than the policy's.
- Only the same weights will do: the adapter's base is the policy's by name, revision and config.

Shape suffixes: N responses, H hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from grmlight.data.batch import GroupBatch
from grmlight.data.names import resolve
from grmlight.models.adapters import ADAPTER_CONFIG, read_adapter_config
from grmlight.models.backbone import BackboneConfig, check_loaded, hidden_size, read_config
from grmlight.models.checkpoint import load_head
from grmlight.models.foreign import Found, find
from grmlight.models.heads import RewardHead
from grmlight.models.hidden import SKIPPED_TOKEN, before_skipped
from grmlight.models.outputs import Outputs, Signal
from grmlight.models.parallel import reshard
from grmlight.models.policy_model import PolicyModel


class SharedReward(nn.Module):
    """Called as a `RewardModel` is, for rewards alone; it gives those of the adapter loaded on a backbone of its own.

    Nothing of it learns. What it has is where the policy is, which must not move afterwards.

    Args:
        found: the adapter, see `find_shared`.
        policy: where it goes; on its device, and sharded if it is to be.

    Raises:
        ValueError: the adapter's tensors do not fit; names them.
    """

    def __init__(self, found: Found, policy: PolicyModel) -> None:
        super().__init__()
        assert found.adapter is not None
        assert found.backbone.lora is not None
        self.policy = policy
        device = next(policy.parameters()).device
        self.head = RewardHead(hidden_size(policy.lm), found.head)
        load_head(self, found.head_tensors, found.folder)
        self.head.requires_grad_(False).to(device)
        self._shift, self._scale = found.shift, found.scale
        self._skipped: int | None = getattr(read_config(found.backbone), SKIPPED_TOKEN, None)
        self._added = _place(found, policy.lm, device)
        self._factor = found.backbone.lora.alpha / found.backbone.lora.r

    def forward(self, batch: GroupBatch, signals: frozenset[Signal] = frozenset()) -> Outputs:
        """Rewards of every response in the batch, without gradient. Errors: as `PolicyModel.base_states`."""
        assert not signals
        if self._skipped is not None:
            batch = before_skipped(batch, self._skipped)
        with torch.no_grad():
            with self._on():
                last_NH = self.policy.base_states(batch)
            if isinstance(self.policy, FSDPModule):
                reshard(self.policy)
            return Outputs(rewards_N=(self.head(last_NH) - self._shift) / self._scale)

    @contextlib.contextmanager
    def _on(self) -> Iterator[None]:
        """The adapters, for a while."""
        with contextlib.ExitStack() as stack:
            for layer, down, up in self._added:
                stack.callback(layer.register_forward_hook(_adding(down, up, self._factor)).remove)
            yield


def find_shared(folder: Path, policy: BackboneConfig) -> Found:
    """The adapter of a folder that a policy is to share its backbone with.

    Errors: ValueError in one line for a policy without adapters, what is no reward model's adapter, and another base
    than the policy's.
    """
    if policy.lora is None:
        raise ValueError(
            f"{folder}: only a policy with adapters keeps its backbone as it is, to share it; set backbone.lora, or "
            "drop share"
        )
    if not (folder / ADAPTER_CONFIG).exists():
        raise ValueError(
            f"{folder}: is no adapter, so it has a backbone of its own; write one with grmlight export --format "
            "adapter, or drop share"
        )
    found = find(folder)
    theirs = (_named(found.backbone.name), read_adapter_config(folder).get("revision"))
    if theirs != (ours := (_named(policy.name), policy.revision)):
        raise ValueError(
            f"{folder}: is an adapter of base model {_told(*theirs)}, and the policy begins as {_told(*ours)}; give "
            "both one base, or drop share"
        )
    changed = sorted(name for name in policy.config or {} if not name.startswith("vhead_"))
    if changed or not policy.pretrained:
        reason = f"changes its config ({', '.join(changed)})" if changed else "is not pretrained"
        raise ValueError(f"{folder}: is an adapter of the base as it is, and the policy {reason}; drop that or share")
    return found


def _named(name: str) -> str:
    """A base model's name, or its folder however that is written."""
    found = Path(resolve(name, "backbone") if name else name)
    return str(found.resolve()) if name and found.is_dir() else name


def _told(name: str, revision: str | None) -> str:
    return repr(name) if revision is None else f"{name!r} at revision {revision}"


def _place(found: Found, lm: PreTrainedModel, device: torch.device) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """The layers that an adapter adds to, each with its matrices; in float32, as adapters are."""
    assert found.adapter is not None
    assert found.backbone.lora is not None
    ends = tuple(f".{target}" for target in found.backbone.lora.targets)
    layers = {name: layer for name, layer in _linear_layers(lm).items() if f".{name}".endswith(ends)}
    rank = found.backbone.lora.r
    expected = {}
    for name, layer in layers.items():
        rows, columns = reversed(layer.weight.shape) if isinstance(layer, Conv1D) else layer.weight.shape
        expected |= {f"{name}.lora_A": (rank, columns), f"{name}.lora_B": (rows, rank)}
    misshapen = {name for name in expected.keys() & found.adapter.keys() if found.adapter[name].shape != expected[name]}
    what = f"adapter {found.folder} on the policy's base model"
    check_loaded(what, expected.keys() - found.adapter.keys(), found.adapter.keys() - expected.keys(), misshapen)
    matrices = {name: tensor.to(device, torch.float32) for name, tensor in found.adapter.items()}
    return [(layer, matrices[f"{name}.lora_A"], matrices[f"{name}.lora_B"]) for name, layer in layers.items()]


def _linear_layers(lm: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers of a causal LM without its head by the names that they had before it got adapters."""
    output, found = lm.get_output_embeddings(), {}
    for name, module in lm.named_modules():
        inside = {*name.split(".")} & {"base_layer", "lora_A", "lora_B"}
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(layer, nn.Linear | Conv1D) and layer is not output and not inside:
            found[name] = layer
    return found


def _adding(down: Tensor, up: Tensor, factor: float) -> Callable[..., Any]:
    """A forward hook that adds an adapter's product to a layer's output, in the arithmetic of peft's layers."""

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG001
        added = linear(linear(inputs[0].to(down.dtype), down), up) * factor
        return (output + added).to(output.dtype)

    return add
