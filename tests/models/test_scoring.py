"""Scoring: eval mode, and the same reward in any company."""

from __future__ import annotations

import random

import pytest
import torch

from grmlight.models import HeadConfig, Scorer
from grmlight.models.padded import MAX_PADDED, length_buckets
from tests.models.groups import mixed_groups, starts
from tests.models.plain import plain_copy, plain_outputs
from tests.reference.packing import pack_groups
from tests.tiny_models import PACKABLE, UNPACKABLE, tiny_reward_model


def scores(scorer: Scorer, groups) -> torch.Tensor:
    return scorer.score(pack_groups(groups))


@pytest.mark.parametrize("packing", ["auto", "never"])
@pytest.mark.parametrize("architecture", PACKABLE + UNPACKABLE)
def test_a_reward_does_not_depend_on_its_company(architecture, packing):
    model = tiny_reward_model(architecture, head=HeadConfig(width=16, dropout=0.5), packing=packing)
    scorer, groups = Scorer(model), mixed_groups()
    together = scores(scorer, groups)
    alone = torch.cat([scores(scorer, [[sequence]]) for group in groups for sequence in group])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    order = list(range(len(groups)))
    random.Random(1).shuffle(order)
    shuffled = scores(scorer, [groups[group] for group in order]).split([len(groups[group]) for group in order])
    back = torch.cat([shuffled[order.index(group)] for group in range(len(groups))])
    torch.testing.assert_close(together, back, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        expected, _ = plain_outputs(plain_copy(model).eval(), groups, starts(groups))
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packing", ["auto", "never"])
@pytest.mark.parametrize("pad", [0, 2, 50])
def test_the_id_of_the_padding_does_not_matter(packing, pad):
    """Sequences that end in, contain and begin with the pad id, which may be the end of sequence: 2."""
    entries = {"pad_token_id": pad}
    scorer = Scorer(tiny_reward_model("llama", config=entries, packing=packing))
    groups = [[[7, pad, 9, pad], [7, 5, pad, 6, 8, pad, pad]], [[pad, 4, 5], [pad, 6]], [[pad, pad, pad, 3, pad]]]
    together = scores(scorer, groups)
    alone = torch.cat([scores(scorer, [[sequence]]) for group in groups for sequence in group])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    other = Scorer(tiny_reward_model("llama", config={"pad_token_id": 1}, packing=packing))
    for name in ("lm", "head"):
        getattr(other.model, name).load_state_dict(getattr(scorer.model, name).state_dict())
    torch.testing.assert_close(together, scores(other, groups), rtol=1e-5, atol=1e-5)


def test_dropout_is_off_while_scoring_and_back_after():
    head = HeadConfig(width=16, dropout=0.5)
    model = tiny_reward_model("llama", lora=True, head=head, config={"attention_dropout": 0.5})
    model.lm.model.layers[0].eval()
    modes = [part.training for part in model.modules()]
    scorer, batch = Scorer(model), pack_groups(mixed_groups())
    first = scorer.score(batch)
    assert torch.equal(first, scorer.score(batch))
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(first, model.eval()(batch).rewards_N)
    assert first.dtype == torch.float32
    assert not first.requires_grad


def test_scoring_leaves_nothing_that_training_trips_over():
    model, batch = tiny_reward_model("mistral"), pack_groups(mixed_groups())
    Scorer(model).score(batch)
    model(batch).rewards_N.sum().backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())


def test_modes_come_back_after_an_error():
    model = tiny_reward_model("llama")
    with pytest.raises(IndexError):
        Scorer(model).score(pack_groups([[[1, 2, 100_000]]]))
    assert all(part.training for part in model.modules())


def test_recentering_statistics_live_in_the_model():
    model, batch = tiny_reward_model("llama"), pack_groups(mixed_groups())
    raw = Scorer(model).score(batch)
    assert {"reward_shift", "reward_scale"} <= model.state_dict().keys()
    model.reward_shift.fill_(raw.mean())
    model.reward_scale.fill_(raw.std())
    centered = Scorer(model).score(batch)
    torch.testing.assert_close(centered, (raw - raw.mean()) / raw.std())
    model.to(torch.bfloat16)
    assert model(batch).rewards_N.dtype == torch.float32


def test_buckets_hold_little_padding():
    lengths = [random.Random(2).randrange(1, 400) for _ in range(200)]
    lengths = [length + number for number, length in enumerate(lengths)]
    buckets = length_buckets(lengths)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(lengths)))
    for bucket in buckets:
        held = [lengths[index] for index in bucket]
        assert max(held) == held[0]
        assert len(held) * held[0] <= MAX_PADDED * sum(held)
    assert len(buckets) < 10


def test_sequences_beyond_a_dynamic_rotary_table_are_refused():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_reward_model("llama", config={"rope_parameters": rope, "max_position_embeddings": 12})
    assert Scorer(model).score(pack_groups([[[5] * 12]])).isfinite().all()
    with pytest.raises(ValueError, match="13 tokens.*max_length to 12"):
        Scorer(model).score(pack_groups([[[5] * 13]]))
