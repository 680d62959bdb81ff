"""The packed and the padded forward give what scoring one by one gives, values and gradients."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from grmlight.models import Signal
from tests.models.groups import mixed_groups, sequences, starts
from tests.models.plain import assert_same_gradients, plain_copy, plain_outputs, wake_adapters
from tests.reference.packing import pack_groups
from tests.tiny_models import PACKABLE, UNPACKABLE, tiny_reward_model

ALL = frozenset({Signal.LOGPS})


def objective(rewards: torch.Tensor, logps: torch.Tensor) -> torch.Tensor:
    """A sum in which every reward and log-prob has a weight of its own."""
    weights = torch.linspace(-1.0, 1.3, len(rewards))
    return (weights * rewards).sum() + 0.05 * (weights.flip(0) * logps).sum()


def check(model, groups, early: int = 0) -> None:
    """Rewards, log-probs and gradients of one batch against one-by-one scoring."""
    wake_adapters(model)
    twin, scored = plain_copy(model), starts(groups, early)
    expected_rewards, expected_logps = plain_outputs(twin, groups, scored)
    outputs = model(pack_groups(groups, scored), ALL)
    torch.testing.assert_close(outputs.rewards_N, expected_rewards, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs.logps_N, expected_logps, rtol=1e-5, atol=1e-5)
    objective(expected_rewards, expected_logps).backward()
    objective(outputs.rewards_N, outputs.logps_N).backward()
    assert_same_gradients(model, twin)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_a_pack_equals_its_sequences_one_by_one(architecture, lora):
    model = tiny_reward_model(architecture, lora)
    assert model.packed
    check(model, mixed_groups())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", PACKABLE + UNPACKABLE)
def test_padded_rows_equal_their_sequences_one_by_one(architecture, lora):
    model = tiny_reward_model(architecture, lora, packing="never")
    assert not model.packed
    check(model, mixed_groups())


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral"])
def test_scored_tokens_may_lie_in_the_shared_prompt(architecture):
    check(tiny_reward_model(architecture), mixed_groups(), early=3)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox", "gpt_oss", "stablelm", "deepseek_v3"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_gradient_checkpointing_changes_nothing(architecture, lora):
    check(tiny_reward_model(architecture, lora, gradient_checkpointing=True), mixed_groups())


@pytest.mark.parametrize("architecture", ["llama", "stablelm"])
def test_forwards_that_overlap_keep_their_layouts(architecture):
    """What gradient checkpointing runs again in backward has the layout of its own forward, not of the last one."""
    groups = mixed_groups()
    batches = [pack_groups(groups[:2]), pack_groups(groups[2:])]
    model = tiny_reward_model(architecture, gradient_checkpointing=True)
    twin = copy.deepcopy(model)
    for batch in batches:
        twin(batch).rewards_N.sum().backward()
    losses = [model(batch).rewards_N.sum() for batch in batches]
    with torch.no_grad():
        model(pack_groups(groups))
    torch.stack(losses).sum().backward()
    assert_same_gradients(model, twin)


@pytest.mark.parametrize("packing", ["auto", "never"])
def test_responses_longer_than_a_piece_of_queries(packing):
    groups = [sequences(random.Random(3), 280, 300, 20)]
    config = {"max_position_embeddings": 1024, "sliding_window": 150}
    check(tiny_reward_model("gemma2", packing=packing, config=config), groups)


@pytest.mark.parametrize("packing", ["auto", "never"])
def test_one_response_alone(packing):
    check(tiny_reward_model("mistral", packing=packing), [[[5, 6, 7]]])


def test_a_prompt_need_not_be_shared_in_full():
    groups = mixed_groups()
    model = tiny_reward_model("mistral").eval()
    scored = starts(groups)
    whole = model(pack_groups(groups, scored), ALL)
    for length in (0, 4):
        part = model(pack_groups(groups, scored, prompts=[min(length, scores[0]) for scores in scored]), ALL)
        torch.testing.assert_close(part.rewards_N, whole.rewards_N, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(part.logps_N, whole.logps_N, rtol=1e-5, atol=1e-5)


def test_attention_dropout_acts_in_training_only():
    groups = mixed_groups()
    for architecture in ("llama", "gemma2"):
        model = tiny_reward_model(architecture, config={"attention_dropout": 0.5})
        batch = pack_groups(groups)
        first, second = (model(batch).rewards_N for _ in range(2))
        assert not torch.equal(first, second)
        model.eval()
        first, second = (model(batch).rewards_N for _ in range(2))
        assert torch.equal(first, second)
        torch.testing.assert_close(
            first, plain_outputs(plain_copy(model), groups, starts(groups))[0], rtol=1e-5, atol=1e-5
        )


def test_chosen_logps_are_those_of_the_better_responses():
    groups = mixed_groups()
    batch = pack_groups(groups, comparisons=[[(1, 0)], [], [(0, 1)], [(2, 0), (2, 3)]])
    model = tiny_reward_model("qwen3")
    chosen = model(batch, frozenset({Signal.CHOSEN_LOGPS})).logps_N
    every = model(batch, ALL).logps_N
    better = torch.zeros(batch.responses, dtype=torch.bool).index_fill(0, batch.better_C, True)
    assert chosen.isnan().equal(~better)
    torch.testing.assert_close(chosen[better], every[better])
    chosen[batch.better_C].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_both_logps_signals_together_give_every_response():
    outputs = tiny_reward_model()(pack_groups(mixed_groups()), frozenset({Signal.CHOSEN_LOGPS, Signal.LOGPS}))
    assert outputs.logps_N.isfinite().all()


def test_only_what_is_asked_for_is_returned():
    model, batch = tiny_reward_model(), pack_groups(mixed_groups())
    outputs = model(batch)
    assert outputs.logps_N is outputs.reference_logps_N is outputs.hidden_NH is None
    assert outputs.rewards_N.dtype == torch.float32
    hidden = model(batch, frozenset({Signal.HIDDEN})).hidden_NH
    torch.testing.assert_close(model.head(hidden), outputs.rewards_N)


def test_a_batch_without_scored_tokens_still_reaches_the_lm_head():
    groups = mixed_groups()
    nothing = [[len(sequence) for sequence in group] for group in groups]
    model = tiny_reward_model()
    logps = model(pack_groups(groups, nothing), ALL).logps_N
    assert logps.tolist() == [0.0] * len(logps)
    logps.sum().backward()
    assert model.lm.lm_head.weight.grad.abs().sum() == 0


def test_bfloat16_keeps_head_and_adapters_in_float32():
    model = tiny_reward_model("llama", lora=True, dtype="bfloat16")
    kinds = {p.dtype for name, p in model.named_parameters() if "lora" in name or name.startswith("head.")}
    assert kinds == {torch.float32}
    assert model.lm.lm_head.weight.dtype == torch.bfloat16
    outputs = model(pack_groups(mixed_groups()), ALL)
    assert outputs.rewards_N.dtype == outputs.logps_N.dtype == torch.float32
    wide = tiny_reward_model("llama", lora=True)(pack_groups(mixed_groups()), ALL)
    torch.testing.assert_close(outputs.rewards_N, wide.rewards_N, rtol=0.1, atol=0.1)
    model.to(torch.bfloat16)
    assert {p.dtype for p in model.head.parameters()} == {torch.float32}


@pytest.mark.parametrize("packing", ["auto", "never"])
def test_autocast(packing):
    model, batch = tiny_reward_model("gemma2", packing=packing), pack_groups(mixed_groups())
    expected = model(batch, ALL)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch, ALL)
        (outputs.rewards_N.sum() + outputs.logps_N.sum()).backward()
    assert outputs.rewards_N.dtype == outputs.logps_N.dtype == torch.float32
    torch.testing.assert_close(outputs.rewards_N, expected.rewards_N, rtol=0.1, atol=0.1)
    torch.testing.assert_close(outputs.logps_N, expected.logps_N, rtol=0.05, atol=0.05)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
