"""Scoring many answers of one prompt: one pack against one padded batch of transformers."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.train.material import TINY, make_model
from benchmarks.train.peers import clock, padded
from benchmarks.train.report import Row
from benchmarks.train.shapes import SHAPES, population
from grmlight.models import BackboneConfig, HeadConfig, RewardModel, Scorer
from tests.reference.packing import pack_groups

ANSWERS = 64


def scoring_rows(folder: Path, repetitions: int) -> list[Row]:
    """64 answers of the reference shape to a prompt of its median and of its mean length."""
    if not (folder / "model").exists():
        make_model(folder / "model", TINY)
    prompts = [prompt for prompt, *_ in population(SHAPES["reference"])]
    rows = []
    for name, length, bounds in [
        ("median", int(statistics.median(prompts)), (3.0, 5.0)),
        ("mean", int(statistics.mean(prompts)), (None, None)),
    ]:
        ratio = _ratio(folder, length, repetitions)
        rows.append(Row(f"scoring 64 answers to a prompt of {name} length, {length} tokens", ratio, "x", *bounds))
    return rows


def _ratio(folder: Path, prompt: int, repetitions: int) -> float:
    sequences = _sequences(prompt)
    model = RewardModel(BackboneConfig(str(folder / "model")), HeadConfig(kind="linear", dropout=0.0))
    scorer, batch = Scorer(model), pack_groups([sequences], comparisons=[[]])
    lm = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    ratios = []
    for _ in range(repetitions + 1):
        begin = clock()
        expected = _padded_scores(lm, model.head, sequences)
        middle = clock()
        scores = scorer.score(batch)
        end = clock()
        assert torch.allclose(scores, expected, rtol=1e-5, atol=1e-5)
        ratios.append((middle - begin) / (end - middle))
    return statistics.median(ratios[1:])


def _sequences(prompt: int) -> list[list[int]]:
    draw = np.random.default_rng(2)
    lengths = [chosen for _, chosen, _ in population(SHAPES["reference"], seed=3)[:ANSWERS]]
    begin = draw.integers(3, TINY["vocab_size"], prompt).tolist()
    return [begin + draw.integers(3, TINY["vocab_size"], length).tolist() for length in lengths]


@torch.inference_mode()
def _padded_scores(lm: nn.Module, head: nn.Module, sequences: list[list[int]]) -> torch.Tensor:
    ids_BW, mask_BW = padded(sequences)
    states_BWH = lm.get_decoder()(input_ids=ids_BW, attention_mask=mask_BW, use_cache=False).last_hidden_state  # pyright: ignore[reportCallIssue]
    head.eval()
    return head(states_BWH[torch.arange(len(sequences)), mask_BW.sum(dim=1) - 1])
