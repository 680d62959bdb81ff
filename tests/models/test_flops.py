"""FLOPs by arithmetic against torch's own count of matrix products."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from grmlight.models import Signal
from grmlight.models.flops import model_flops
from grmlight.training.speed import Work
from tests.models.groups import mixed_groups, starts
from tests.reference.packing import pack_groups, shared_prompt
from tests.tiny_models import tiny_reward_model


def batch():
    groups = mixed_groups()
    return pack_groups(groups, starts(groups))


def counted(model, batch):
    """Matrix products of forward and backward, attention and the reward head left out."""
    with FlopCounterMode(display=False) as counter:
        model(batch).rewards_N.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    head = 6 * batch.responses * sum(p.numel() for p in model.head.parameters() if p.dim() == 2)
    return sum(n for op, n in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm)) - head


def test_full_training_is_six_a_weight_and_token():
    model = tiny_reward_model("llama", packing="auto")
    model.train_language_head(False)
    found = model_flops(model, frozenset())
    assert found.token * len(batch().input_ids_T) == counted(model, batch())
    assert found.scored == 0


def test_adapters_take_four_for_what_is_frozen():
    model = tiny_reward_model("llama", lora=True)
    found = model_flops(model, frozenset()).token * len(batch().input_ids_T)
    # The first layer needs no gradient of its input.
    assert 0.85 * found < counted(model, batch()) <= found


def test_attention_counts_what_each_token_sees():
    work = Work()
    work.add(batch(), attention=True)
    seen = 0
    for group in mixed_groups():
        prompt = shared_prompt(group)
        seen += prompt * (prompt + 1) // 2
        seen += sum(place + 1 for each in group for place in range(prompt, len(each)))
    assert work.attended == seen
    found = model_flops(tiny_reward_model("llama"), frozenset())
    assert found.attended == 2 * 2 * 32 * 2 * 3  # two products of 2 FLOPs, width 32, 2 layers, forward and backward


@pytest.mark.parametrize(
    ("signals", "share"),
    [({Signal.LOGPS}, 6), ({Signal.CHOSEN_LOGPS}, 3), ({Signal.LOGPS, Signal.REFERENCE_LOGPS}, 8), (set(), 0)],
)
def test_the_lm_head_counts_where_it_is_asked(signals, share):
    model = tiny_reward_model("llama")
    plain, found = model_flops(model, frozenset()), model_flops(model, frozenset(signals))
    assert found.scored == share * model.lm.get_output_embeddings().weight.numel()
    assert found.token / plain.token == pytest.approx(4 / 3 if Signal.REFERENCE_LOGPS in signals else 1)
