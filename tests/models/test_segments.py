"""The loop over segments equals attention token by token."""

from __future__ import annotations

import pytest
import torch

from grmlight.models import segments
from grmlight.models.segments import Terms, attend_segments
from tests.models.slow_attention import attend_token_by_token, layout_of, random_states, values_and_gradients

LAYOUT = layout_of((31, [9, 70, 1]), (0, [5, 44]), (12, [3]))
TERMS = {
    "plain": Terms(0.3),
    "window": Terms(0.3, window=6),
    "softcap": Terms(0.3, softcap=1.5),
    "both": Terms(0.3, window=40, softcap=1.5),
}


def assert_same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("max_queries", [256, 16, 1])
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_every_token_sees_its_prompt_and_what_comes_before(terms, sinks, max_queries, monkeypatch):
    monkeypatch.setattr(segments, "MAX_QUERIES", max_queries)
    segments._pieces.cache_clear()
    states = random_states(LAYOUT, sizes=(8, 6))
    if sinks:
        states.append(torch.tensor([2.0, -1.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True))
    found = values_and_gradients(lambda q, k, v, *s: attend_segments(q, k, v, LAYOUT, terms, *s), states)
    expected = values_and_gradients(lambda q, k, v, *s: attend_token_by_token(q, k, v, LAYOUT, terms, *s), states)
    segments._pieces.cache_clear()
    assert_same(found, expected)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
def test_grouped_heads(heads):
    states = random_states(LAYOUT, heads)
    for terms in TERMS.values():
        assert_same(
            [attend_segments(*states, LAYOUT, terms)],
            [attend_token_by_token(*states, LAYOUT, terms)],
        )


def test_pieces_of_a_long_segment_are_even_and_cover_it():
    layout = layout_of((700, [513]))
    pieces = segments._pieces(layout, None, False, torch.float32, torch.device("cpu"))
    assert [(p.segment, p.start, p.stop) for p in pieces] == [
        (0, 0, 233),
        (0, 233, 466),
        (0, 466, 700),
        (1, 0, 171),
        (1, 171, 342),
        (1, 342, 513),
    ]


def test_biases_are_made_once_a_layout():
    pieces = segments._pieces(LAYOUT, 6, False, torch.float32, torch.device("cpu"))
    again = segments._pieces(
        layout_of((31, [9, 70, 1]), (0, [5, 44]), (12, [3])), 6, False, torch.float32, torch.device("cpu")
    )
    assert pieces is again


def test_what_inference_mode_made_serves_training():
    layout = layout_of((11, [4, 9]))
    states = random_states(layout)
    terms = Terms(0.3, window=5)
    with torch.inference_mode():
        attend_segments(*states, layout, terms)
    values_and_gradients(lambda q, k, v: attend_segments(q, k, v, layout, terms), states)


def test_dropout_drops():
    states = random_states(LAYOUT)
    for terms in (Terms(0.3, dropout=0.5), Terms(0.3, softcap=2.0, dropout=0.5)):
        torch.manual_seed(0)
        first, second = (attend_segments(*states, LAYOUT, terms) for _ in range(2))
        assert not torch.equal(first, second)
