"""How others train the same pairs: TRL's RewardTrainer, and the plain padded loop with full logits.

A variant runs some steps from the same weights and returns what each step cost and its loss.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import datasets
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
)
from trl import RewardConfig, RewardTrainer

from benchmarks.train.material import Material

LEARNING_RATE = 1e-4
CLIP = 1.0
ALPHA, BETA = 0.01, 0.1


@dataclasses.dataclass(frozen=True)
class Steps:
    """What the timed steps of a run were.

    Attributes:
        seconds: of each step after the first, by `clock`.
        losses: of every step.
        figures: what was logged at the end, where something was.
    """

    seconds: list[float]
    losses: list[float]
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


Variant = Callable[[Material, int], Steps]


_GPU = torch.cuda.is_available()
"""Asked once: the answer takes a third of a millisecond."""


def clock() -> float:
    """Seconds of this process's processors; on a GPU the time of day, once its queue is empty."""
    if _GPU:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def differences(ends: list[float]) -> list[float]:
    """The time between the ends of consecutive steps."""
    return [end - begin for begin, end in itertools.pairwise(ends)]


class Ends(TrainerCallback):
    """Notes when each step ends, logging included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Note the time."""
        self.ends.append(clock())


class LossKeeper(Trainer):
    """Keeps the loss of each step as a tensor; to be put before one of TRL's trainers."""

    def compute_loss(self, *arguments: Any, **more: Any) -> Any:
        """Keep the loss."""
        loss = super().compute_loss(*arguments, **more)
        self.kept = [*getattr(self, "kept", []), (loss[0] if isinstance(loss, tuple) else loss).detach()]
        return loss


class _KeepingRewardTrainer(LossKeeper, RewardTrainer):
    """TRL's trainer of reward models."""


def trl_options(pairs: int, steps: int) -> dict[str, Any]:
    """What TRL's configs are told beside their defaults; `max_length` is raised, so that the pairs are the same."""
    return {
        "max_length": 2048,
        "use_cpu": not torch.cuda.is_available(),
        "per_device_train_batch_size": pairs,
        "max_steps": steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP,
        "weight_decay": 0.0,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
    }


def trl_steps(kind: type[LossKeeper], material: Material, rows: list[dict[str, Any]], **arguments: Any) -> Steps:
    """Train with one of TRL's trainers."""
    ends = Ends()
    trainer = kind(
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(material.model),
        callbacks=[ends],
        **arguments,
    )
    trainer.train()
    return Steps(differences(ends.ends), torch.stack(trainer.kept).tolist())


def trl(gradient_checkpointing: bool = True, bf16: bool = False, lora: dict[str, Any] | None = None) -> Variant:
    """TRL's RewardTrainer with its defaults but for `trl_options`."""

    def run(material: Material, steps: int) -> Steps:
        model = AutoModelForSequenceClassification.from_pretrained(material.model, num_labels=1)
        with torch.no_grad():
            model.score.weight.copy_(material.score)
        rows = [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in material.ids]
        adapters = None if lora is None else LoraConfig(task_type="SEQ_CLS", **lora)
        with tempfile.TemporaryDirectory() as folder:
            options = RewardConfig(
                folder, gradient_checkpointing=gradient_checkpointing, bf16=bf16, **trl_options(len(rows), steps)
            )
            return trl_steps(_KeepingRewardTrainer, material, rows, model=model, args=options, peft_config=adapters)

    return run


def padded_language_loss(material: Material, steps: int) -> Steps:
    """GRM with SFT as one would write it first: padded rows, the logits of every position, log-softmax in float32."""
    lm = AutoModelForCausalLM.from_pretrained(material.model)
    score = nn.Linear(lm.config.hidden_size, 1, bias=False)
    with torch.no_grad():
        score.weight.copy_(material.score)
    parameters = [*lm.parameters(), *score.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    rows = [chosen for chosen, _ in material.ids] + [rejected for _, rejected in material.ids]
    ids_BW, mask_BW = padded(rows)
    scored_BW = mask_BW.bool()
    for row, prompt in enumerate(material.prompts * 2):
        scored_BW[row, :prompt] = False
    ends, losses = [], []
    for _ in range(steps):
        loss = _padded_loss(lm, score, ids_BW, mask_BW, scored_BW)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        ends.append(clock())
    return Steps(differences(ends), torch.stack(losses).tolist())


def _padded_loss(lm: Any, score: nn.Linear, ids_BW: Tensor, mask_BW: Tensor, scored_BW: Tensor) -> Tensor:
    output = lm(input_ids=ids_BW, attention_mask=mask_BW, output_hidden_states=True, use_cache=False)
    pairs = len(ids_BW) // 2
    last_BH = output.hidden_states[-1][torch.arange(len(ids_BW)), mask_BW.sum(dim=1) - 1]
    rewards_B = score(last_BH).squeeze(-1)
    preference = -F.logsigmoid(rewards_B[:pairs] - rewards_B[pairs:]).mean()
    logps_BWV = output.logits[:, :-1].float().log_softmax(dim=-1)
    token_BW = logps_BWV.gather(2, ids_BW[:, 1:, None]).squeeze(2)
    logps_B = (token_BW * scored_BW[:, 1:]).sum(dim=1)
    return (1 - ALPHA) * preference - ALPHA * F.logsigmoid(BETA * logps_B[:pairs]).mean()


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and mask, [B, W]."""
    width = max(map(len, rows))
    ids_BW = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask_BW = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids_BW, mask_BW
