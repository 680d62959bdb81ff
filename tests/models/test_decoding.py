"""Decoding many rows with a cache against one prompt at a time, every token from a forward over the whole sequence."""

import numpy as np
import pytest
import torch

from grmlight.models.attention import PACKED
from grmlight.models.backbone import load_backbone, read_config
from grmlight.models.decoding import decode, own_attention
from tests.tiny_models import PACKABLE, UNPACKABLE, VOCABULARY, tiny_backbone

LIMIT = 9
ENDS = frozenset(range(3, 20))
OWNERS = (1, 0, 2, 0, 1, 1)


def _lm(architecture, attention=None):
    options = tiny_backbone(architecture)
    return load_backbone(options, read_config(options), attention).eval()


def _prompts(*lengths):
    rng = np.random.default_rng(3)
    return [rng.integers(20, VOCABULARY, length) for length in lengths]


def _pick(logits, rows, token):
    """Row 0 takes the most probable token, row 1 the second, and so on, so that rows of one prompt part."""
    return logits.sort(dim=-1, descending=True).indices.gather(1, rows[:, None]).squeeze(1)


@torch.no_grad()
def _slow(lm, prompt, row, pick=_pick):
    """One row: all its tokens anew for each further one."""
    tokens, logps = [], []
    while len(tokens) < LIMIT and not (tokens and tokens[-1] in ENDS):
        ids = torch.tensor([[*prompt.tolist(), *tokens]])
        logits = lm(input_ids=ids, use_cache=False).logits[:, -1].float()
        tokens.append(int(pick(logits, torch.tensor([row]), len(tokens))))
        logps.append(logits.log_softmax(-1)[0, tokens[-1]].item())
    return tokens, logps, tokens[-1] in ENDS


def _check(found, lm, prompts, owners=OWNERS):
    assert len(found) == len(owners)
    for row, (each, owner) in enumerate(zip(found, owners, strict=True)):
        tokens, logps, ended = _slow(lm, prompts[owner], row)
        assert (each.tokens.tolist(), each.ended) == (tokens, ended)
        np.testing.assert_allclose(each.logps, logps, atol=2e-5)


@pytest.mark.parametrize("architecture", PACKABLE)
def test_rows_of_padded_prompts_go_on_as_alone(architecture):
    lm, prompts = _lm(architecture), _prompts(7, 2, 12)
    found = decode(lm, prompts, OWNERS, _pick, ENDS, LIMIT)
    assert len({len(each.tokens) for each in found}) > 2, "rows are to end at different times"
    _check(found, lm, prompts)


@pytest.mark.filterwarnings("ignore:.*is not installed:UserWarning")
@pytest.mark.parametrize("architecture", UNPACKABLE)
def test_rows_of_prompts_of_one_length_go_on_as_alone(architecture):
    lm, prompts = _lm(architecture), _prompts(6, 6, 6)
    _check(decode(lm, prompts, OWNERS, _pick, ENDS, LIMIT), lm, prompts)


def test_a_packed_model_decodes_and_stays_packed():
    packed, plain, prompts = _lm("gemma2", PACKED), _lm("gemma2"), _prompts(7, 2, 12)
    packed.load_state_dict(plain.state_dict())
    _check(decode(packed, prompts, OWNERS, _pick, ENDS, LIMIT), plain, prompts)
    assert packed.config._attn_implementation == PACKED
    with pytest.raises(KeyError), own_attention(packed):
        raise KeyError
    assert packed.config._attn_implementation == PACKED


def test_ended_rows_leave_the_batch():
    """A forward over rows that have all but one ended is over few rows."""
    lm, prompts, rows = _lm("llama"), _prompts(4, 4), []
    lm.register_forward_pre_hook(lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)

    def pick(logits, row_R, token):
        return torch.where(row_R <= token, 5, 50)

    found = decode(lm, prompts, [0] * 16, pick, {5}, 20)
    assert [len(each.tokens) for each in found] == [row + 1 for row in range(16)]
    assert all(each.ended for each in found)
    assert rows[0] == 2, "each prompt is read once"
    assert sum(rows[1:]) < 0.7 * 16 * 15


def test_one_token_and_no_end():
    lm, prompts = _lm("llama"), _prompts(4)
    (one,) = decode(lm, prompts, [0], _pick, ENDS, 1)
    assert len(one.tokens) == 1
    (long,) = decode(lm, prompts, [0], _pick, (), LIMIT)
    assert len(long.tokens) == LIMIT
    assert not long.ended


def test_a_model_without_a_cache_of_the_common_kind_is_named():
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16)
    with pytest.raises(ValueError, match="RwkvForCausalLM has no cache that grmlight knows"):
        decode(RwkvForCausalLM(config).eval(), _prompts(4), [0], _pick, ENDS, LIMIT)
