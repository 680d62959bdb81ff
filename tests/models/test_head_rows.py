"""Which hidden states reach the LM head: only those that predict a token whose log-prob is asked for."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grmlight.models import Signal
from tests.models.groups import mixed_groups, starts
from tests.reference.packing import pack_groups
from tests.tiny_models import VOCABULARY, tiny_reward_model

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}


class Rows(TorchDispatchMode):
    """Counts the rows of all matrix products that are a vocabulary wide."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS and result.shape[-1] == VOCABULARY:
            self.rows += result.numel() // VOCABULARY
        return result


def rows_of(model, batch, *signals):
    with Rows() as counted, torch.no_grad():
        model(batch, frozenset(signals))
    return counted.rows


@pytest.fixture
def batch():
    """Groups of 1, 2 and 4 responses; in the last one, the third response is better than two others."""
    groups = mixed_groups()
    comparisons = [[(0, 1)], [], [(1, 0)], [(2, 0), (2, 3)]]
    return pack_groups(groups, starts(groups), comparisons)


@pytest.mark.parametrize("packing", ["auto", "never"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_head_sees_no_row_that_is_not_asked_for(architecture, packing, batch):
    model = tiny_reward_model(architecture, packing=packing)
    scored_N = batch.scored_tokens_N()
    better = sorted(set(batch.better_C.tolist()))
    assert len(better) == 3
    chosen = int(scored_N[better].sum())
    assert 0 < chosen < int(scored_N.sum()) < len(batch.input_ids_T)
    assert rows_of(model, batch) == 0
    assert rows_of(model, batch, Signal.HIDDEN) == 0
    assert rows_of(model, batch, Signal.CHOSEN_LOGPS) == chosen
    assert rows_of(model, batch, Signal.LOGPS) == int(scored_N.sum())
    assert rows_of(model, batch, Signal.LOGPS, Signal.CHOSEN_LOGPS) == int(scored_N.sum())


def test_a_reference_that_the_batch_carries_costs_no_row(batch):
    scored = len(batch.target_L)
    signals = (Signal.LOGPS, Signal.REFERENCE_LOGPS)
    carried = pack_with_reference(batch)
    for options in ({"reference": True}, {"lora": True}):
        model = tiny_reward_model(**options)
        assert rows_of(model, batch, *signals) == 2 * scored
        assert rows_of(model, carried, *signals) == scored
    found = tiny_reward_model()(carried, frozenset(signals)).reference_logps_N
    assert torch.equal(found, carried.reference_logps_N)


def pack_with_reference(batch):
    return batch.__class__(**vars(batch) | {"reference_logps_N": torch.arange(batch.responses, dtype=torch.float32)})


def test_training_learns_from_the_chosen_rows_alone(batch):
    """Backward too: what the rejected side predicts gets no gradient from the chosen side's log-probs."""
    model = tiny_reward_model()
    with Rows() as counted:
        logps_N = model(batch, frozenset({Signal.CHOSEN_LOGPS})).logps_N
        logps_N[batch.better_C].sum().backward()
    chosen = int(batch.scored_tokens_N()[sorted(set(batch.better_C.tolist()))].sum())
    assert counted.rows <= 2 * chosen
