"""What tests of online optimization share: small policies, prompts without files, and samplers that can be foreseen."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch

from grmlight.data.encode import TokenGroup, pack
from grmlight.models import BackboneConfig, LoraOptions, PolicyModel, Signal, evaluating
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.online.options import Update
from grmlight.policy.rollouts import Answer, Rollout, Rollouts
from grmlight.policy.sampler import SamplingOptions
from tests.tiny_models import tiny_config

END = 2
PROMPTS = [str(number) for number in range(24)]


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    prompts: tuple[str, ...]
    numbers: tuple[int, ...]
    counts: tuple[int, ...]

    def to(self, *_, **__):
        return self


class PromptLoader:
    """Deals `per_step` prompts to ranks in turn; its state is that of a TrainingLoader."""

    def __init__(self, prompts, per_step, rank=0, ranks=1):
        self.prompts, self.per_step, self.rank, self.ranks = prompts, per_step, rank, ranks
        self.epoch = self.steps = 0

    def __len__(self):
        return len(self.prompts) // self.per_step

    def __iter__(self):
        for step in range(self.steps, len(self)):
            self.steps = step + 1
            if self.steps == len(self):
                self.epoch, self.steps = self.epoch + 1, 0
            numbers = range(self.rank, self.per_step, self.ranks)
            prompts = tuple(self.prompts[step * self.per_step + number] for number in numbers)
            yield PromptBatch(prompts, tuple(numbers), (1,) * len(prompts))

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "steps": self.steps}

    def load_state_dict(self, state):
        self.epoch, self.steps = state["epoch"], state["steps"]


class PromptData(L.LightningDataModule):
    def __init__(self, prompts, per_step):
        super().__init__()
        self.prompts, self.per_step = prompts, per_step

    def train_dataloader(self):
        return PromptLoader(self.prompts, self.per_step, self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self):
        return []


class OneToken:
    """Draws answers of one token, exactly from the policy; its text is the token's number."""

    name = "one-token"

    def __init__(self, model: PolicyModel, vocabulary: int) -> None:
        self.model, self.vocabulary, self.calls = model, vocabulary, 0

    def refused(self, prompts, options):
        return {}

    def generate(self, prompts, options, seed, numbers=None):
        self.calls += 1
        groups = []
        for number, prompt in zip(numbers, prompts, strict=True):
            tokens = np.array([3, int(prompt)])
            logps_V = arm_logps(self.model, tokens, self.vocabulary)
            draw = np.random.default_rng([seed % 2**63, number])
            weights = logps_V.double().exp().numpy()
            arms = draw.choice(self.vocabulary, options.samples, p=weights / weights.sum())
            answers = tuple(Answer(np.array([arm]), str(arm), True, logps_V[[arm]].numpy()) for arm in arms)
            groups.append(Rollout(prompt, tokens, answers))
        return Rollouts(tuple(groups), self.name, 0.01)


def arm_logps(model: PolicyModel, prompt: np.ndarray, vocabulary: int, reference: bool = False) -> torch.Tensor:
    """The log-prob of each token behind a prompt."""
    whole = tuple(np.append(prompt, arm) for arm in range(vocabulary))
    batch = pack([TokenGroup(whole, (len(prompt),) * vocabulary)])
    with torch.no_grad(), evaluating(model):
        outputs = model(batch, frozenset({Signal.LOGPS, Signal.REFERENCE_LOGPS}))
    return outputs.reference_logps_L if reference else outputs.logps_L


class Canned:
    """Answers that do not depend on the policy: `lengths` tokens drawn by (seed, number); text is the tokens."""

    name = "canned"

    def __init__(self, vocabulary=90, longest=9, end_only=False):
        self.vocabulary, self.longest, self.end_only, self.calls = vocabulary, longest, end_only, 0

    def refused(self, prompts, options):
        return {place: "too long" for place, prompt in enumerate(prompts) if prompt.startswith("long")}

    def generate(self, prompts, options, seed, numbers=None):
        self.calls += 1
        groups = []
        for number, prompt in zip(numbers, prompts, strict=True):
            draw = np.random.default_rng([seed % 2**63, number])
            tokens = draw.integers(5, self.vocabulary, int(draw.integers(2, 7)))
            answers = []
            for _ in range(options.samples):
                length = 0 if self.end_only else int(draw.integers(1, self.longest))
                ended = self.end_only or bool(draw.integers(2))
                ids = np.append(draw.integers(5, self.vocabulary, length), [END] * ended).astype(np.int64)
                answers.append(Answer(ids, " ".join(map(str, ids[: len(ids) - ended])), ended))
            groups.append(Rollout(prompt, tokens, tuple(answers)))
        return Rollouts(tuple(groups), self.name, 0.01)


def small_backbone(vocabulary=101, lora=False, **entries) -> BackboneConfig:
    config = tiny_config("llama", vocab_size=vocabulary, **{"initializer_range": 0.1, **entries})
    adapters = LoraOptions(r=4, alpha=8, dropout=0.0) if lora else None
    return BackboneConfig(name="", pretrained=False, config=config, lora=adapters)


def digits(prompt: str, response: str) -> float:
    """A reward of text: how much its numbers are like one another."""
    numbers = [int(word) for word in response.split()]
    return -float(np.std(numbers)) / 30 if numbers else -1.0


def fit(module: OnlineModule, prompts, per_step, epochs=1, ckpt_path=None, **trainer) -> L.Trainer:
    """Train on the CPU."""
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": epochs,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "limit_val_batches": 0,
    }
    run = L.Trainer(**{**options, **trainer})
    run.fit(module, PromptData(prompts, per_step), ckpt_path=ckpt_path)
    return run


def module_of(rewards, sampler=None, **options):
    """A small policy against some rewards, whose answers are canned."""
    settings = {"sampling": SamplingOptions(samples=4), "update": Update(minibatches=2)} | options
    module = OnlineModule(small_backbone(), rewards, **settings)
    module.sampler = sampler or Canned()
    return module


def weights(module):
    """A copy of them, by name."""
    return {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
