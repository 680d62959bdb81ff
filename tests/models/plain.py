"""Scoring as plain transformers does it: one whole sequence at a time, no packing, no padding, full logits."""

from __future__ import annotations

import copy

import torch

from grmlight.models import RewardModel


def plain_copy(model: RewardModel) -> RewardModel:
    """A copy whose causal LM uses transformers' own eager attention, and whose gradients are its own."""
    twin = copy.deepcopy(model)
    twin.lm.set_attn_implementation("eager")
    return twin


def plain_outputs(model: RewardModel, groups, scored_starts) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards and summed log-probs of every sequence, in order."""
    rewards, logps = [], []
    for sequences, starts in zip(groups, scored_starts, strict=True):
        for sequence, start in zip(sequences, starts, strict=True):
            ids = torch.tensor([sequence])
            output = model.lm(input_ids=ids, output_hidden_states=True, use_cache=False)
            rewards.append(model.head(output.hidden_states[-1][:, -1])[0])
            table = output.logits[0].float().log_softmax(dim=-1)
            places = range(max(start, 1), len(sequence))
            logps.append(sum((table[place - 1, sequence[place]] for place in places), torch.zeros(())))
    return torch.stack(rewards), torch.stack(logps)


def assert_same_gradients(actual: torch.nn.Module, expected: torch.nn.Module, tolerance: float = 1e-5) -> None:
    """Each tensor's gradient agrees to `tolerance` of its largest entry; zero gradients stay 1e-6 of the whole."""
    wanted = {name: p.grad for name, p in expected.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in actual.named_parameters() if p.grad is not None}
    assert wanted.keys() == found.keys()
    whole = torch.stack([grad.norm() for grad in wanted.values()]).norm()
    for name, grad in wanted.items():
        error = (found[name] - grad).abs().max()
        assert error <= max(tolerance * grad.abs().max(), 1e-6 * whole), f"{name}: {error} of {grad.abs().max()}"


def wake_adapters(model: torch.nn.Module) -> None:
    """Give LoRA's B matrices, which begin as zeros, random values."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=generator)
