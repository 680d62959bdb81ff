"""Sampling from a policy that two processes share (FSDP2) or each have (DDP), over gloo: as one process does."""

import json

import numpy as np
import pytest
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from grmlight.data.tokenizer import load_tokenizer
from grmlight.models import PolicyModel, Signal, shard
from grmlight.models.attention import PACKED
from grmlight.policy.huggingface import HuggingFaceSampler
from grmlight.policy.rollouts import Rollouts, read_rollouts, write_rollouts
from grmlight.policy.sampler import SamplingOptions
from tests.models.plain import wake_adapters
from tests.policy.test_huggingface import same
from tests.ranks import RANKS, on_ranks
from tests.tiny_models import tiny_backbone

TEXTS = ("the cat", "why is the red house green and the dog not so", "who", "it was", "that the dog said", "no", "so")
SHARES = ((3,), (0, 1, 2, 4, 5, 6))
"""Unequal: the second rank has more prompts, more batches, and others."""
OPTIONS = SamplingOptions(samples=3, max_new_tokens=16, temperature=1.2, top_k=40, rows_per_batch=5)


def _policy(lora):
    policy = PolicyModel(
        tiny_backbone("gemma2", lora, {"vocab_size": 300, "eos_token_id": 7, "attention_dropout": 0.3})
    )
    policy.lm.generation_config.eos_token_id = list(range(20, 60))
    wake_adapters(policy)
    return policy.train()


def _loss(policy, rollouts):
    policy.eval()
    return policy(rollouts.batch(), frozenset({Signal.LOGPS})).logps_N.sum()


def _sample(rank, folder, tokenizer, lora, kind):
    policy, whole = _policy(lora), None
    if kind == "fsdp":
        shard(policy, init_device_mesh("cpu", (RANKS,)))
    else:
        whole = DistributedDataParallel(policy)
    sampler = HuggingFaceSampler(policy, load_tokenizer(str(tokenizer)))
    numbers = SHARES[rank]
    found = sampler.generate([TEXTS[number] for number in numbers], OPTIONS, 4, numbers)
    write_rollouts(folder / f"rollouts-{rank}.jsonl", found)
    assert all(module.training for module in policy.modules())
    assert policy.lm.config._attn_implementation == PACKED
    # One rank has nothing to say at all.
    assert len(sampler.generate(TEXTS[:2] if rank else (), OPTIONS, 4).groups) == 2 * rank
    # A step of training on what was sampled, as if nothing had happened; then sampling again.
    batch = read_rollouts(folder / "expected.jsonl").batch()
    policy.eval()
    (whole or policy)(batch, frozenset({Signal.LOGPS})).logps_N.sum().backward()
    norms = {
        name: float((p.grad.full_tensor() if kind == "fsdp" else p.grad).norm())
        for name, p in policy.named_parameters()
        if p.grad is not None
    }
    (folder / f"norms-{rank}.json").write_text(json.dumps(norms))
    again = sampler.generate([TEXTS[number] for number in numbers], OPTIONS, 4, numbers)
    same(again, found)


@pytest.mark.parametrize(("kind", "lora"), [("fsdp", False), ("fsdp", True), ("ddp", False)])
def test_ranks_sample_what_one_process_samples(kind, lora, tmp_path, byte_tokenizer):
    policy = _policy(lora)
    expected = HuggingFaceSampler(policy, load_tokenizer(str(byte_tokenizer))).generate(TEXTS, OPTIONS, 4)
    lengths = [len(answer.tokens) for answer in expected.answers]
    assert len(set(lengths)) > 4, "rows are to end at different times"
    write_rollouts(tmp_path / "expected.jsonl", expected)
    on_ranks(_sample, tmp_path, byte_tokenizer, lora, kind)
    for rank, numbers in enumerate(SHARES):
        groups = tuple(expected.groups[number] for number in numbers)
        same(read_rollouts(tmp_path / f"rollouts-{rank}.jsonl"), Rollouts(groups, "huggingface", 0.0))
    _loss(policy, expected).backward()
    norms = json.loads((tmp_path / "norms-0.json").read_text())
    assert norms == json.loads((tmp_path / "norms-1.json").read_text())
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            np.testing.assert_allclose(norms[name], parameter.grad.norm(), rtol=1e-4, atol=1e-5)
    assert norms
