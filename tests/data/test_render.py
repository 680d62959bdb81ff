"""Rendering with a real tokenizer's chat template."""

import pytest
from transformers import AutoTokenizer

from grmlight.data.render import Renderer

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "why"}]


@pytest.fixture
def tokenizer(byte_tokenizer):
    return AutoTokenizer.from_pretrained(byte_tokenizer)


def scored(rendering):
    return [text[start:] for text, start in zip(rendering.texts, rendering.boundaries, strict=True)]


def test_only_the_scored_response_is_scored(tokenizer):
    found = Renderer(tokenizer).render(CHAT, [[{"role": "assistant", "content": "so"}], "not so"])
    assert found.texts[0] == "<|user|>hi<|end|><|assistant|>yes?<|end|><|user|>why<|end|><|assistant|>so<|end|>"
    assert scored(found) == ["so<|end|>", "not so<|end|>"]


def test_the_paper_scores_from_the_first_user_message_on(tokenizer):
    found = Renderer(tokenizer, paper_mask=True).render(CHAT, ["so", "no"])
    assert scored(found)[0] == "yes?<|end|><|user|>why<|end|><|assistant|>so<|end|>"


def test_a_text_prompt_becomes_a_user_message_where_there_is_a_template(tokenizer):
    found = Renderer(tokenizer).render("why", ["so", "no"])
    assert found.texts[1] == "<|user|>why<|end|><|assistant|>no<|end|>"
    plain = Renderer(tokenizer, text_rows="plain").render("why ", ["so", "no"])
    assert plain.texts == ["why so", "why no"]
    assert scored(plain) == ["so", "no"]


def test_whole_texts_share_whole_words(tokenizer):
    found = Renderer(tokenizer, text_rows="plain").render("", ["The sky is blue.", "The sky is bleak."])
    assert scored(found) == [" blue.", " bleak."]


def test_the_template_may_refuse_a_conversation(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system role here') }}"
    assert Renderer(tokenizer).render("why", ["so", "no"]) == "no system role here"


def test_a_template_that_closes_thoughts_only_in_prompts(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    assert scored(Renderer(tokenizer).render("why", ["so", "no"])) == ["so", "no"]


@pytest.mark.parametrize(
    ("options", "prompt", "message"),
    [
        ({"text_rows": "chat"}, "why", "has no chat template"),
        ({}, CHAT, "has no chat template"),
    ],
)
def test_a_missing_template_says_what_to_do(tokenizer, options, prompt, message):
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=message):
        Renderer(tokenizer, **options).render(prompt, ["so", "no"])


def test_messages_do_not_go_with_plain_text(tokenizer):
    with pytest.raises(ValueError, match="auto or chat"):
        Renderer(tokenizer, text_rows="plain").render(CHAT, ["so", "no"])
    with pytest.raises(ValueError, match="text_rows: plain"):
        Renderer(tokenizer).render("", ["a text", "another text"])
