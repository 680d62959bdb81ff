"""PPO's iteration on given rollouts: packed, against a plain loop that pads them; their losses must be equal.

An iteration is the forward without gradient of policy, critic and reference, GAE, and two epochs of two minibatches.
The plain loop is the usual one: prompts padded on the left, answers on the right, to the longest of the minibatch,
logits of the answers' positions alone. Beside the ratio stands its FLOP ceiling: what tokens and the products of linear
layers allow if a FLOP costs the same everywhere. Seconds are of the process's own processors.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.train.material import TINY, make_model
from benchmarks.train.report import Row
from benchmarks.train.shapes import SHAPES, population
from grmlight.models import BackboneConfig
from grmlight.module import _mix
from grmlight.policy.online.controllers import KlOptions
from grmlight.policy.online.minibatches import minibatches
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.online.options import Update
from grmlight.policy.rollouts import Answer, Rollout, Rollouts
from grmlight.policy.sampler import SamplingOptions

PROMPTS, SAMPLES, EPOCHS, MINIBATCHES = 4, 4, 2, 2
BETA, CLIP, GAMMA, LAMBDA, VALUE_WEIGHT, RATE, NORM = 0.05, 0.2, 1.0, 0.95, 0.5, 1e-4, 1.0


def online_rows(folder: Path, repetitions: int = 3) -> list[Row]:
    """The ratio, its FLOP ceiling, and the seconds of both, at lengths of the reference shape."""
    if not (folder / "model").exists():
        make_model(folder / "model", TINY)
    rollouts = make_rollouts()
    ours, our_losses = packed(folder, rollouts, repetitions + 1)
    theirs, their_losses = padded(folder, rollouts, repetitions + 1)
    assert np.allclose(our_losses, their_losses, rtol=1e-4, atol=1e-5), (our_losses, their_losses)
    ratio = statistics.median(slow / fast for slow, fast in zip(theirs[1:], ours[1:], strict=True))
    what = f"PPO, {PROMPTS} prompts x {SAMPLES} answers, against padding them"
    return [
        Row(what, ratio, "x", 1.5, 2.0),
        Row(f"{what}: FLOP ceiling", ceiling(rollouts), "x"),
        Row("PPO iteration, packed", statistics.median(ours[1:]), "s"),
        Row("PPO iteration, padded", statistics.median(theirs[1:]), "s"),
    ]


def make_rollouts() -> tuple[Rollout, ...]:
    """Prompts and answers of the reference shape's lengths."""
    draw = np.random.default_rng(0)
    lengths = population(SHAPES["reference"], seed=5)
    rollouts = []
    for number in range(PROMPTS):
        prompt = draw.integers(3, TINY["vocab_size"], lengths[number][0])
        answers = [draw.integers(3, TINY["vocab_size"], lengths[PROMPTS + SAMPLES * number + k][1]) for k in range(4)]
        rollouts.append(Rollout(str(number), prompt, tuple(Answer(each, str(each[0]), True) for each in answers)))
    return tuple(rollouts)


def worth(prompt: str, response: str) -> float:  # noqa: ARG001
    """A reward that costs nothing."""
    return int(response) / TINY["vocab_size"]


@dataclasses.dataclass(frozen=True)
class _Given:
    prompts: tuple[str, ...]
    numbers: tuple[int, ...]
    counts: tuple[int, ...]

    def to(self, *_: Any, **__: Any) -> _Given:
        return self


class _Fixed:
    """A sampler that gives the same rollouts, at no cost."""

    name = "fixed"

    def __init__(self, rollouts: tuple[Rollout, ...]) -> None:
        self.rollouts = rollouts

    def refused(self, prompts: Any, options: SamplingOptions) -> dict[int, str]:
        return {}

    def generate(self, prompts: Any, options: SamplingOptions, seed: int, numbers: Any = None) -> Rollouts:
        return Rollouts(self.rollouts, self.name, 0.0)


class _Timed(OnlineModule):
    """Keeps the seconds and the loss of each iteration."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        begin = time.process_time()
        super().training_step(batch, batch_idx)
        self.seconds = [*getattr(self, "seconds", []), time.process_time() - begin]

    def finish_figures(self, figures: dict[str, float]) -> dict[str, float]:
        self.kept = [*getattr(self, "kept", []), figures["train/loss"]]
        return super().finish_figures(figures)


def packed(folder: Path, rollouts: tuple[Rollout, ...], iterations: int) -> tuple[list[float], list[float]]:
    """Seconds and mean loss of each iteration of `OnlineModule`."""
    module = _Timed(
        BackboneConfig(str(folder / "model")),
        [worth],  # pyright: ignore[reportArgumentType]
        kl=KlOptions(coefficient=BETA),
        sampling=SamplingOptions(samples=SAMPLES),
        update=Update(epochs=EPOCHS, minibatches=MINIBATCHES, clip=CLIP, value_clip=CLIP, max_gradient_norm=NORM),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0),
        schedule="constant",
        warmup_ratio=0.0,
    )
    module.sampler = _Fixed(rollouts)
    batches = [_Given(tuple(map(str, range(PROMPTS))), tuple(range(PROMPTS)), (1,) * PROMPTS)] * iterations
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=CSVLogger(str(folder)),
        log_every_n_steps=EPOCHS * MINIBATCHES,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=_same))
    return module.seconds, module.kept


def _same(batch: Any) -> Any:
    return batch


class _Plain:
    """The usual loop: rollouts as padded rows."""

    def __init__(self, folder: Path, rollouts: tuple[Rollout, ...]) -> None:
        self.lm = AutoModelForCausalLM.from_pretrained(folder / "model")
        self.reference = copy.deepcopy(self.lm).eval().requires_grad_(False)
        self.head = nn.Linear(TINY["hidden_size"], 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.parameters = [*self.lm.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=0.0)
        self.rollouts = rollouts

    def rows(self, prompts: list[int]) -> dict[str, Tensor]:
        """Prompts padded on the left, answers on the right."""
        pairs = [(self.rollouts[p].prompt_tokens, a.tokens) for p in prompts for a in self.rollouts[p].answers]
        front, back = max(len(p) for p, _ in pairs), max(len(a) for _, a in pairs)
        ids, mask = torch.zeros(2, len(pairs), front + back, dtype=torch.int64)
        for row, (prompt, answer) in enumerate(pairs):
            place = slice(front - len(prompt), front + len(answer))
            ids[row, place] = torch.from_numpy(np.concatenate([prompt, answer]))
            mask[row, place] = 1
        scores = [worth("", a.text) for p in prompts for a in self.rollouts[p].answers]
        return {"ids": ids, "mask": mask, "there": mask[:, front:].bool(), "scores": torch.tensor(scores)}

    def forward(self, lm: Any, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probs and values at the answers' places."""
        positions = (rows["mask"].cumsum(1) - 1).clamp(min=0)
        hidden = lm.model(rows["ids"], attention_mask=rows["mask"], position_ids=positions).last_hidden_state
        answers = rows["there"].shape[1]
        hidden = hidden[:, -answers - 1 : -1]
        logps = lm.lm_head(hidden).log_softmax(-1).gather(2, rows["ids"][:, -answers:, None])[..., 0]
        return logps, self.head(hidden)[..., 0]

    @torch.no_grad()
    def told(self) -> dict[str, Tensor]:
        """All that updates need of the answers, whitened advantages aside."""
        rows = self.rows(list(range(PROMPTS)))
        there = rows["there"]
        old, values = (each * there for each in self.forward(self.lm, rows))
        reference = self.forward(self.reference, rows)[0] * there
        rewards = -BETA * (old - reference)
        rewards[torch.arange(len(there)), there.sum(1) - 1] += rows["scores"]
        advantages, running = torch.zeros_like(rewards), torch.zeros(len(rewards))
        for column in reversed(range(rewards.shape[1])):
            following = values[:, column + 1] if column + 1 < rewards.shape[1] else torch.zeros(len(rewards))
            delta = rewards[:, column] + GAMMA * following - values[:, column]
            running = (delta + GAMMA * LAMBDA * running) * there[:, column]
            advantages[:, column] = running
        del rows["scores"]
        return rows | {"old": old, "values": values, "returns": advantages + values, "advantages": advantages}

    def some(self, told: dict[str, Tensor], prompts: list[int]) -> dict[str, Tensor]:
        """The answers to some prompts, without columns that none of them needs."""
        rows = torch.tensor([p * SAMPLES + k for p in prompts for k in range(SAMPLES)])
        mine = {name: each[rows] for name, each in told.items()}
        answers = mine["there"].shape[1]
        spare, used = answers - int(mine["there"].sum(1).max()), int(mine["mask"].any(0).int().argmax())
        for name in ("ids", "mask"):
            mine[name] = mine[name][:, used : mine[name].shape[1] - spare]
        for name in ("there", "old", "values", "returns", "advantages"):
            mine[name] = mine[name][:, : answers - spare]
        return mine

    def step(self, told: dict[str, Tensor]) -> float:
        """One optimizer step."""
        there = told["there"]
        logps, values = (each[there] for each in self.forward(self.lm, told))
        old, before, returns, raw = (told[name][there] for name in ("old", "values", "returns", "advantages"))
        white = (raw - raw.mean()) * (raw.var(correction=0) + 1e-8).rsqrt()
        ratio = (logps - old).exp()
        policy = torch.maximum(-white * ratio, -white * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
        near = before + (values - before).clamp(-CLIP, CLIP)
        value = 0.5 * torch.maximum((values - returns).square(), (near - returns).square()).mean()
        loss = policy + VALUE_WEIGHT * value
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, NORM)
        self.optimizer.step()
        return loss.item()


def padded(folder: Path, rollouts: tuple[Rollout, ...], iterations: int) -> tuple[list[float], list[float]]:
    """Seconds and mean loss of each iteration of the plain loop."""
    plain = _Plain(folder, rollouts)
    seconds, losses = [], []
    for iteration in range(iterations):
        begin = time.process_time()
        told, found = plain.told(), []
        for epoch in range(EPOCHS):
            for prompts in minibatches(PROMPTS, MINIBATCHES, _mix(0, iteration, 2 + epoch)):
                some = plain.some(told, prompts.tolist())
                found.append(plain.step(some))
        seconds.append(time.process_time() - begin)
        losses.append(statistics.mean(found))
    return seconds, losses


def ceiling(rollouts: tuple[Rollout, ...]) -> float:
    """FLOPs of the plain loop's linear layers over those of the packed one."""
    layers, head = 3.24e6, TINY["hidden_size"] * TINY["vocab_size"]
    prompts = [len(rollout.prompt_tokens) for rollout in rollouts]
    answers = [len(answer.tokens) for rollout in rollouts for answer in rollout.answers]

    def flops(tokens: float, scored: float, products: int) -> float:
        return products * (layers * tokens + head * scored)

    longest, rows = max(answers), len(answers)
    plain = flops(rows * (max(prompts) + longest), rows * longest, 4)
    for epoch in range(EPOCHS):
        for some in minibatches(PROMPTS, MINIBATCHES, _mix(0, 1, 2 + epoch)):
            back = max(answers[SAMPLES * p + k] for p in some for k in range(SAMPLES))
            front = max(prompts[p] for p in some)
            plain += flops(len(some) * SAMPLES * (front + back), len(some) * SAMPLES * back, 6)
    return plain / flops(sum(prompts) + sum(answers), sum(answers), 4 + 6 * EPOCHS)
