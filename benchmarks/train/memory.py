"""Peak memory that a step adds to model and data, each variant in a process of its own.

`python -m benchmarks.train.memory FOLDER VARIANT` runs one step and prints the bytes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from benchmarks.train.material import TINY, Material, make_material
from benchmarks.train.ours import optimizer
from benchmarks.train.peers import padded
from benchmarks.train.report import Row
from benchmarks.train.shapes import SHAPES, population, typical_batch
from grmlight.losses import preference_loss
from grmlight.models import BackboneConfig, HeadConfig, LogitTransform, RewardModel, token_logps

_LAYERS = 6
_HIDDEN, _VOCABULARY = 256, 256_000
_PROMPT, _RESPONSE = 234, 317
"""Tokens of the mean pair of the reference shape."""

FIGURES: tuple[tuple[str, str, str, float, float], ...] = (
    ("packed training over padded training", "packed", "padded", 0.4, 0.3),
    ("SFT on a trained head of 256k tokens, over full logits", "chunked sft trained", "full sft trained", 0.27, 0.23),
    ("SFT on a frozen head, over full logits", "chunked sft frozen", "full sft frozen", 0.2, 0.15),
    ("DPO on a trained head, over full logits", "chunked dpo trained", "full dpo trained", 0.2, 0.15),
    ("DPO on a frozen head, over full logits", "chunked dpo frozen", "full dpo frozen", 0.2, 0.15),
)


def memory_rows(folder: Path) -> list[Row]:
    """Added peak memory, ours over the peer's."""
    _material(folder)
    added = {name: _in_own_process(name, folder) for _, *names in FIGURES for name in names[:2]}
    rows = [
        Row(f"added peak memory, {figure}", added[ours] / added[peer], "x", floor, target, at_most=True)
        for figure, ours, peer, floor, target in FIGURES
    ]
    return rows + [Row(f"added peak memory, {name}", number / 2**20, "MiB") for name, number in added.items()]


def _material(folder: Path) -> Material:
    pairs = typical_batch(population(SHAPES["reference"]), 8)
    return make_material(folder, pairs, TINY | {"num_hidden_layers": _LAYERS})


def _in_own_process(name: str, folder: Path) -> int:
    command = [sys.executable, "-m", "benchmarks.train.memory", str(folder), name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    added = int(done.stdout.split()[-1])
    print(f"  memory, {name}: {added / 2**20:.0f} MiB", flush=True)
    return added


def _packed(material: Material) -> Callable[[], None]:
    """A step of a reward model on a pack."""
    model = RewardModel(BackboneConfig(material.model), HeadConfig(kind="linear", dropout=0.0))
    model.train_language_head(False)
    learning = optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
    batch = material.batch

    def step() -> None:
        rewards_N = model(batch).rewards_N
        preference_loss(rewards_N[batch.better_C], rewards_N[batch.worse_C]).mean().backward()
        learning.step()

    return step


def _padded(material: Material) -> Callable[[], None]:
    """A step of the same model on rows padded to the longest."""
    decoder = AutoModelForCausalLM.from_pretrained(material.model).get_decoder().train()
    score = nn.Linear(TINY["hidden_size"], 1, bias=False)
    learning = optimizer([*decoder.parameters(), *score.parameters()])
    ids_BW, mask_BW = padded([chosen for chosen, _ in material.ids] + [rejected for _, rejected in material.ids])

    def step() -> None:
        states_BWH = decoder(input_ids=ids_BW, attention_mask=mask_BW, use_cache=False).last_hidden_state
        rewards_B = score(states_BWH[torch.arange(len(ids_BW)), mask_BW.sum(dim=1) - 1]).squeeze(-1)
        preference_loss(*rewards_B.chunk(2)).mean().backward()
        learning.step()

    return step


def _language_head(chunked: bool, dpo: bool, trained: bool) -> Callable[[], None]:
    """Log-probs of a mean pair from given hidden states: of the chosen response, or of both."""
    responses = 2 if dpo else 1
    weight_VH = (torch.randn(_VOCABULARY, _HIDDEN) * 0.02).requires_grad_(trained)
    # Full logits are those of both whole sequences; without sharing each holds the prompt.
    hidden_LH = torch.randn(
        responses * _RESPONSE if chunked else 2 * (_PROMPT + _RESPONSE), _HIDDEN, requires_grad=True
    )
    target_L = torch.randint(_VOCABULARY, (len(hidden_LH),))
    scored_L = torch.zeros(len(hidden_LH), dtype=torch.bool)
    for response in range(responses):
        scored_L[response * (_PROMPT + _RESPONSE) + _PROMPT :][:_RESPONSE] = True

    def step() -> None:
        if chunked:
            logps_L = token_logps(hidden_LH, weight_VH, None, target_L, LogitTransform())
        else:
            logps_L = F.linear(hidden_LH, weight_VH).log_softmax(dim=-1).gather(1, target_L[:, None])[scored_L]
        logps_L.sum().backward()

    return step


def _variant(name: str, folder: Path) -> Callable[[], None]:
    if name in ("packed", "padded"):
        return {"packed": _packed, "padded": _padded}[name](_material(folder))
    how, what, head = name.split()
    return _language_head(how == "chunked", what == "dpo", head == "trained")


def _memory(field: str) -> int:
    """A figure of this process, in bytes: VmRSS is what it holds, VmHWM the most it held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main(folder: str, name: str) -> None:
    """Print what one step adds at its peak."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    step = _variant(name, Path(folder))
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    step()
    print(_memory("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
