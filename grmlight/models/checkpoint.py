"""Reward models on disk: a Hugging Face folder in the layout of the GRM authors' released models.

The LM's own tensors (adapters merged), the head as `v_head.summary.*` in float32, and `vhead_*` keys in config.json.
Recentering statistics go into the head's last layer, so every reader of the layout gets the same rewards.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grmlight.data.files import remove
from grmlight.data.names import resolve
from grmlight.models.backbone import FOREIGN_PREFIX, HEAD_PREFIX, BackboneConfig, check_loaded
from grmlight.models.heads import HeadConfig
from grmlight.models.weights import MODEL_FILES, read_tensors

if TYPE_CHECKING:
    from grmlight.models.causal_model import CausalModel
    from grmlight.models.ensemble import AnyRewardModel
    from grmlight.models.reward_model import RewardModel
    from grmlight.models.shared_reward import SharedReward

    Model = TypeVar("Model", bound=RewardModel)

OPTIONS_FILE = "grmlight.json"
"""What a model folder holds beside weights, config and tokenizer."""

MEMBER, MEMBERS_FILE = "member-", "members.safetensors"
"""An ensemble's folders of whole models, and its file of all that is not in them."""

_OURS = (
    *("model*.safetensors", "model.safetensors.index.json", f"{MEMBER}*", MEMBERS_FILE, OPTIONS_FILE),
    *("adapter_*", "v_head.safetensors", "modeling_grm.py", "experts.safetensors"),
)
"""What another layout leaves, and would be read in place of this one."""

BACKBONE_OPTIONS = frozenset({"dtype", "lora", "frozen", "gradient_checkpointing"})


def save(model: RewardModel, directory: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Write the folder. Errors: ValueError if the directory is a file."""
    with writing(directory) as part:
        lm = merged(model)
        tensors = {**lm.state_dict(), **_named(final_head(model))}
        lm.save_pretrained(part, state_dict=tensors)
        _write_config(part / "config.json", model.head_config)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)


@contextlib.contextmanager
def writing(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder under a temporary name, whose files are moved into place at the end, config.json last.

    Errors: ValueError if the directory is a file.
    """
    target = Path(directory)
    if target.is_file():
        raise ValueError(f"cannot save a model to {target}: it is a file; give a directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        yield Path(temporary)
        publish_model(Path(temporary), target)


def load(model_class: type[Model], directory: str | os.PathLike[str], options: dict[str, Any]) -> Model:
    """Build a model from a folder. See `RewardModel.from_pretrained`."""
    folder = Path(resolve(os.fspath(directory), "model"))
    try:
        entries = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is no reward model: its config.json cannot be read ({error})") from error
    head = head_config(entries, folder)
    chosen = {name: options.pop(name) for name in BACKBONE_OPTIONS & options.keys()}
    model = model_class(BackboneConfig(name=str(folder), **chosen), head, **options)
    load_head(model, head_tensors(folder), folder)
    return model


def head_config(entries: dict[str, Any], folder: Path) -> HeadConfig:
    """The head that a config.json of the GRM layout describes; what it leaves out is as in the authors' code.

    Errors: ValueError for a config of another kind, or of a head with several outputs.
    """
    if "vhead_layer_type" not in entries:
        raise ValueError(f"{folder} is no reward model of the GRM layout: its config.json has no vhead_layer_type")
    if (outputs := entries.get("vhead_num_output", 1)) != 1:
        raise ValueError(f"{folder}: its reward head has {outputs} outputs (vhead_num_output); only one can be read")
    try:
        return HeadConfig(
            kind=entries["vhead_layer_type"],
            layers=entries.get("vhead_num_layers", 1),
            width=entries.get("vhead_num_neurons", 1024),
            dropout=entries.get("summary_dropout_prob", 0.1),
        )
    except TypeError as error:
        raise ValueError(f"{folder}: its config.json describes no reward head ({error})") from error


def head_tensors(folder: Path, files: tuple[str, ...] = MODEL_FILES) -> dict[str, Tensor]:
    """The reward head's tensors of a folder in the GRM layout, by their names in `RewardHead`."""
    found = read_tensors(folder, HEAD_PREFIX, files)
    return {name.removeprefix(HEAD_PREFIX): tensor for name, tensor in found.items()}


def frozen_names(model: AnyRewardModel | CausalModel) -> frozenset[str]:
    """The state dict's names of pretrained weights that never train: the backbone's own, where it has adapters.

    Anybody can load them again by the backbone's name, so training checkpoints leave them out.
    """
    backbone = model.backbone_config
    if not backbone.pretrained or (backbone.lora is None and not backbone.frozen):
        return frozenset()
    parameters = model.named_parameters(remove_duplicate=False)
    return frozenset(
        name for name, parameter in parameters if not parameter.requires_grad and "backbone" in name.split(".")
    )


def fingerprint(model: AnyRewardModel | CausalModel, names: Iterable[str]) -> str:
    """A hash of tensors' bits, the same however they are sharded. Call it on every rank."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    ordered = sorted(names)
    sums = [_sum_of_bits(parameters[name]) for name in ordered]
    total = torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)
    if any(isinstance(parameters[name], DTensor) for name in ordered):
        torch.distributed.all_reduce(total)
    return hashlib.sha256(json.dumps([ordered, total.tolist()]).encode()).hexdigest()


def _sum_of_bits(parameter: Tensor) -> Tensor:
    local = parameter.detach()
    local = local.to_local() if isinstance(local, DTensor) else local
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[local.element_size()]
    return local.contiguous().view(integers).sum(dtype=torch.int64)


def merged(model: CausalModel) -> PreTrainedModel:
    """The causal LM without adapters of its own; where there are any, a float32 copy: bf16 would round them away."""
    if not isinstance(model.backbone, PeftModel):
        return model.backbone
    lm = copy.deepcopy(model.backbone).float().merge_and_unload()
    assert isinstance(lm, PreTrainedModel)
    return lm


def final_head(model: RewardModel) -> dict[str, Tensor]:
    """The head's tensors, the recentering applied."""
    state = {name: tensor.detach().clone() for name, tensor in model.head.state_dict().items()}
    weight, bias = list(state)[-2:]
    state[weight] /= model.reward_scale
    state[bias] = (state[bias] - model.reward_shift) / model.reward_scale
    return state


def _named(head: dict[str, Tensor]) -> dict[str, Tensor]:
    return {HEAD_PREFIX + name: tensor for name, tensor in head.items()}


def head_entries(head: HeadConfig) -> dict[str, Any]:
    """What config.json says of a head."""
    return {
        "vhead_layer_type": head.kind,
        "vhead_num_layers": head.layers,
        "vhead_num_neurons": head.width,
        "summary_dropout_prob": head.dropout,
    }


def _write_config(path: Path, head: HeadConfig) -> None:
    entries = json.loads(path.read_text()) | head_entries(head)
    entries.pop(FOREIGN_PREFIX, None)
    path.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n")


def publish_model(part: Path, target: Path) -> None:
    """Move the files into place one by one, each whole; config.json, without which nothing loads, comes last."""
    target.mkdir(exist_ok=True)
    (target / "config.json").unlink(missing_ok=True)
    names = {path.name for path in part.iterdir()}
    for stale in [path for pattern in _OURS for path in target.glob(pattern)]:
        if stale.name not in names or stale.is_dir():
            remove(stale)
    for name in names:
        if (target / name).is_dir():
            remove(target / name)
    for name in sorted(names, key=lambda name: name == "config.json"):
        (part / name).replace(target / name)


def load_head(model: RewardModel | SharedReward, tensors: dict[str, Tensor], folder: Path) -> None:
    """Put tensors, by their names in `RewardHead`, into a model's head. A ValueError names those that do not fit."""
    expected = model.head.state_dict()
    misshapen = {name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape}
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    check_loaded(f"reward head in {folder}", missing, unexpected, misshapen)
    with torch.no_grad():
        model.head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
