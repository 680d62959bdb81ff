"""What Lightning and our module add to a step: the same steps by Trainer.fit and by a bare loop."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import CSVLogger

from benchmarks.train.material import OPTIONS, Material, cache, make_material
from benchmarks.train.ours import optimizer
from benchmarks.train.peers import ALPHA, CLIP, clock
from benchmarks.train.report import Row
from grmlight import PairDataModule, RewardModule
from grmlight.data import GroupLoader
from grmlight.losses import preference_loss, sft_log_sigmoid
from grmlight.models import BackboneConfig, HeadConfig, RewardModel, Signal
from grmlight.regularizers import TextGeneration

_MODEL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}
_STEPS, _WARM = 400, 50
_PAIRS_PER_STEP = 2
_PAIRS = [(6, 5, 4), (5, 7, 6)] * _STEPS
"""One epoch: what Lightning does between two is no cost of a step."""


class _Watch(L.Callback):
    """The time between the end of the warm-up and the end of training."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time at both ends."""
        if trainer.global_step == _WARM:
            self.begin = clock()
        self.end = clock()


def lightning_rows(folder: Path, repetitions: int) -> list[Row]:
    """Milliseconds a step that a run takes beyond a bare loop, with one regularizer, logging every 50 steps."""
    material = make_material(folder, _PAIRS, _MODEL)
    added, bare = [], []
    for _ in range(repetitions):
        bare.append(_bare(material))
        added.append(_fit(material) - bare[-1])
        print(f"  lightning: {bare[-1]:.3f} ms bare, {added[-1]:.3f} ms added", flush=True)
    return [
        Row("Lightning's cost over a bare loop, a step", statistics.median(added), "ms", 1.0, 0.6, at_most=True),
        Row("the bare loop's step", statistics.median(bare), "ms"),
    ]


def _head() -> HeadConfig:
    return HeadConfig(kind="linear", dropout=0.0)


def _fit(material: Material) -> float:
    module = RewardModule(
        BackboneConfig(material.model), _head(), optimizer=optimizer, schedule="constant", warmup_ratio=0.0
    )
    data = PairDataModule(
        train=material.pairs, tokenizer=material.model, prepare=OPTIONS, pairs_per_step=_PAIRS_PER_STEP
    )
    watch = _Watch()
    with cache(material.folder), tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=_STEPS,
            gradient_clip_val=CLIP,
            log_every_n_steps=50,
            logger=CSVLogger(folder),
            callbacks=[TextGeneration(ALPHA), watch],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        ).fit(module, data)
    return 1000 * (watch.end - watch.begin) / (_STEPS - _WARM)


def _bare(material: Material) -> float:
    """The same model, batches and loss, and nothing else."""
    model = RewardModel(BackboneConfig(material.model), _head())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    learning, begin, step = optimizer(parameters), 0.0, 0
    with cache(material.folder):
        store = PairDataModule(train=material.pairs, tokenizer=material.model, prepare=OPTIONS)
        store.setup("fit")
        loader = GroupLoader(store.prepared["train"].store, _PAIRS_PER_STEP)
    while step < _STEPS:
        for batch in loader:
            outputs = model(batch, frozenset({Signal.CHOSEN_LOGPS}))
            rewards_N, logps_N = outputs.rewards_N, outputs.logps_N
            preference_C = preference_loss(rewards_N[batch.better_C], rewards_N[batch.worse_C])
            penalty_C = sft_log_sigmoid(logps_N[batch.better_C], 0.1)
            ((1 - ALPHA) * preference_C.mean() + ALPHA * penalty_C.mean()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            learning.step()
            learning.zero_grad()
            step += 1
            if step == _WARM:
                begin = clock()
    return 1000 * (clock() - begin) / (_STEPS - _WARM)
