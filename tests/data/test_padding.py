"""The pad token of exported models never occurs in a text."""

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from grmlight.data.padding import NEW_TOKEN, doubled_bos, largest_token, safe_pad


@pytest.fixture
def tokenizer(byte_tokenizer):
    return AutoTokenizer.from_pretrained(byte_tokenizer)


def test_a_pad_token_of_its_own_is_kept(tokenizer):
    pad = safe_pad(tokenizer)
    assert (pad.token, pad.id, pad.fault, pad.is_new) == ("<|pad|>", 0, "", False)


@pytest.mark.parametrize("own", ["<|end|>", "<|user|>", None])
def test_one_that_occurs_or_is_missing_gives_way_to_a_reserved_token(own, tokenizer):
    tokenizer.pad_token = own
    pad = safe_pad(tokenizer)
    assert (pad.token, pad.id, pad.is_new) == ("<|pad|>", 0, False)
    assert pad.fault == (
        "the tokenizer has no pad token" if own is None else f"the tokenizer's pad token {own} occurs in texts"
    )


@pytest.mark.parametrize(
    "reserved", ["<|finetune_right_pad_id|>", "<|reserved_special_token_7|>", "<unused12>", "[PAD]"]
)
def test_vocabularies_have_reserved_tokens_of_many_names(reserved, tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": [reserved]})
    tokenizer.pad_token = "<|end|>"
    tokenizer.chat_template += "<|pad|>"
    assert safe_pad(tokenizer).token == reserved


def test_where_none_is_free_a_new_one_comes_after_the_others(tokenizer):
    tokenizer.pad_token = "<|end|>"
    tokenizer.chat_template += "<|pad|>"
    pad = safe_pad(tokenizer)
    assert (pad.token, pad.id, pad.is_new) == (NEW_TOKEN, max(tokenizer.get_vocab().values()) + 1, True)
    tokenizer.add_special_tokens({"pad_token": pad.token})
    assert tokenizer.pad_token_id == pad.id
    assert safe_pad(tokenizer).fault == ""


def test_what_ends_a_text_for_the_model_is_no_padding(tokenizer):
    assert safe_pad(tokenizer, ends=[0]).fault
    assert safe_pad(tokenizer, ends=[0]).token == NEW_TOKEN


def test_the_largest_token_of_texts_is_no_padding_unless_texts_hold_it(tokenizer):
    before = max(tokenizer.get_vocab().values())
    tokenizer.add_special_tokens({"pad_token": "<|new_pad|>"})
    assert (tokenizer.pad_token_id, largest_token(tokenizer)) == (before + 1, before)
    tokenizer.eos_token = "<|new_pad|>"
    assert largest_token(tokenizer) == before + 1
    tokenizer.eos_token = "<|end|>"
    tokenizer.chat_template += "<|new_pad|>"
    assert largest_token(tokenizer) == before + 1
    tokenizer.pad_token = None
    assert largest_token(tokenizer) == before + 1


def test_a_doubled_begin_of_text_token_is_found(tokenizer):
    assert not doubled_bos(tokenizer)
    tokenizer.bos_token = "<|system|>"
    number = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", number)]
    )
    assert not doubled_bos(tokenizer)
    tokenizer.chat_template = "<|system|>" + tokenizer.chat_template
    assert doubled_bos(tokenizer)
