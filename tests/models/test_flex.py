"""Flex attention's masks: the predicate against the definition, the blocks against the predicate."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from grmlight.models import flex
from grmlight.models.segments import Terms, attend_segments
from tests.models.slow_attention import layout_of, random_layouts, random_states, visible

CPU = torch.device("cpu")
LONG = layout_of((300, [40, 200]), (0, [130]), (5, [90, 7]))


@pytest.mark.parametrize("window", [None, 6])
def test_the_predicate_is_the_definition(window):
    for layout in random_layouts(4):
        tokens = layout.bounds[-1]
        expected = torch.zeros(tokens, tokens, dtype=torch.bool)
        for token, keys in enumerate(visible(layout)):
            expected[token, keys if window is None else keys[-window:]] = True
        query, key = torch.meshgrid(torch.arange(tokens), torch.arange(tokens), indexing="ij")
        assert torch.equal(flex.predicate(layout, window, CPU)(None, None, query, key), expected)


@pytest.mark.parametrize("window", [None, 100])
def test_no_seen_pair_lies_outside_the_blocks(window):
    tokens = LONG.bounds[-1]
    dense = create_block_mask(flex.predicate(LONG, window, CPU), None, None, tokens, tokens, device="cpu")
    ours = flex.block_mask(LONG, window, CPU)
    assert not (dense.to_dense() & ~ours.to_dense()).any()
    assert ours.to_dense().sum() < ours.to_dense().numel() / 2
    if window is None:
        assert torch.equal(dense.to_dense(), ours.to_dense())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("terms", [Terms(0.3), Terms(0.3, 100), Terms(0.3, None, 1.5), Terms(0.2, 60, 1.5)])
def test_flex_attention_gives_the_loop(terms, sinks):
    states = [each.detach() for each in random_states(LONG, sizes=(16, 24), dtype=torch.float32)]
    sinks_A = torch.tensor([2.0, -1.0, 0.0, 0.5]) if sinks else None
    found = flex.attend_blocks(*states, LONG, terms, sinks_A, kernel=flex_attention)
    expected = attend_segments(*states, LONG, terms, sinks_A)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_masks_are_made_once_a_layout():
    assert flex.block_mask(LONG, 6, CPU) is flex.block_mask(LONG, 6, CPU)
