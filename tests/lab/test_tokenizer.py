import json

import jinja2
import pytest
from transformers import AutoTokenizer

from grmlight.lab.corpus import corpus
from grmlight.lab.tokenizer import MAX_LENGTH, build_tokenizer, save_tokenizer
from grmlight.lab.words import EOS, PAD, VOCABULARY
from grmlight.lab.world import World

PROMPT = {"role": "user", "content": "tell two animals color polite"}
ANSWER = {"role": "assistant", "content": "dear cat red , so dog blue"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(saved):
    return AutoTokenizer.from_pretrained(saved)


def test_one_word_is_one_token(loaded):
    assert len(loaded) == len(VOCABULARY)
    assert [loaded.convert_tokens_to_ids(word) for word in VOCABULARY] == list(range(len(VOCABULARY)))


def test_documents_survive_a_round_trip(loaded):
    for document in corpus(World(0), 200):
        ids = loaded(document.text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(document.text.split()) <= MAX_LENGTH
        assert loaded.decode(ids) == document.text


def test_plain_text_gets_no_special_tokens(loaded):
    assert loaded.convert_ids_to_tokens(loaded("cat red")["input_ids"]) == ["cat", "red"]


def test_unknown_words_are_no_error(loaded):
    assert loaded.convert_ids_to_tokens(loaded("cat purple")["input_ids"]) == ["cat", "<unk>"]


def test_padding_is_not_the_end(loaded):
    assert (loaded.pad_token, loaded.eos_token) == (PAD, EOS)
    assert loaded.pad_token_id != loaded.eos_token_id


def test_the_chat_template_renders_a_conversation_exactly(loaded):
    rendered = loaded.apply_chat_template([PROMPT, ANSWER], tokenize=False)
    assert rendered == "<bos> tell two animals color polite <sep> dear cat red , so dog blue <eos>"


def test_the_generation_prompt_ends_with_the_separator(loaded):
    prompt = loaded.apply_chat_template([PROMPT], tokenize=False, add_generation_prompt=True)
    assert prompt == "<bos> tell two animals color polite <sep>"
    assert loaded.apply_chat_template([PROMPT, ANSWER], tokenize=False).startswith(prompt)


def test_the_prompts_tokens_begin_the_conversations(loaded):
    prompt = loaded.apply_chat_template([PROMPT], add_generation_prompt=True)["input_ids"]
    whole = loaded.apply_chat_template([PROMPT, ANSWER])["input_ids"]
    assert whole[: len(prompt)] == prompt
    assert whole[-1] == loaded.eos_token_id
    assert len(whole) == len(prompt) + len(ANSWER["content"].split()) + 1


def test_other_roles_are_refused(loaded):
    with pytest.raises(jinja2.exceptions.TemplateError, match="not system"):
        loaded.apply_chat_template([{"role": "system", "content": "list"}, PROMPT], tokenize=False)


def test_the_template_is_in_the_tokenizers_config(saved):
    assert json.loads((saved / "tokenizer_config.json").read_text())["chat_template"] == build_tokenizer().chat_template


def test_the_shipped_tokenizer_is_this_one(shipped, saved):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((shipped.tokenizer / name).read_text()) == json.loads((saved / name).read_text())
