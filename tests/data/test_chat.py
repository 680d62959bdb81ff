"""Chat templates rendered by the extension against transformers', byte for byte."""

import datetime
import random

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from grmlight._data_rs import ChatRenderer, UnsupportedTemplateError, read_pairs
from grmlight.data.render import Renderer
from tests.data import chat

NOW = datetime.datetime(2026, 2, 3, 16, 5, 9)
MAPPED = [*chat.written(), *chat.shipped()]
# Those of the families that are to be rendered without transformers, whatever the roles and contents.
FAMILIES = (
    *["llama3", "llama3_1", "llama3_2", "gemma", "gemma3", "qwen2_5", "qwen3", "qwen3_instruct_2507", "phi3", "phi3_5"],
    *["llama3_training", "gemma_training", "gemma3_training", "qwen2_5_training", "qwen3_training", "phi3_training"],
    *[path.stem for path in chat.written()],
)
NAMED = [path for path in MAPPED if path.stem in FAMILIES]


class Stopped(datetime.datetime):
    """A clock that stands still, since transformers asks for the time again and again."""

    @classmethod
    def now(cls, tz=None):
        return NOW


@pytest.fixture
def tokenizer(byte_tokenizer, monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Stopped)
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<|user|>"})
    return tokenizer


def fast(tokenizer, **options):
    options = {"now": NOW.isoformat(), **options}
    return ChatRenderer(tokenizer.chat_template, tokenizer.special_tokens_map, options)


def expected(slow, prompt, responses):
    found = slow.render(prompt, responses)
    return found if isinstance(found, str) else (found.texts, found.boundaries)


def compare(tokenizer, path, groups, **options):
    """How many of the groups are rendered, refused, and left to transformers; all others are the same."""
    tokenizer.chat_template = path.read_text()
    slow, planned = Renderer(tokenizer, **options), fast(tokenizer, **options)
    unplanned = fast(tokenizer, plan=False, **options)
    counts = {"rendered": 0, "refused": 0, "left": 0}
    for row, (prompt, responses) in enumerate(groups, 200):
        try:
            found = planned.render(prompt, responses, row)
        except UnsupportedTemplateError:
            counts["left"] += 1
            with pytest.raises(UnsupportedTemplateError):
                unplanned.render(prompt, responses, row)
            continue
        assert found == expected(slow, prompt, responses), (path.name, prompt, responses)
        assert found == unplanned.render(prompt, responses, row)
        counts["refused" if isinstance(found, str) else "rendered"] += 1
    return counts


@pytest.mark.parametrize("path", MAPPED, ids=lambda path: path.stem)
def test_random_conversations_are_rendered_as_by_transformers(tokenizer, path):
    chance = random.Random(path.stem)
    counts = compare(tokenizer, path, [chat.group(chance) for _ in range(80)])
    if path in NAMED:
        assert counts["left"] == 0
        assert counts["rendered"] > 10


@pytest.mark.parametrize("name", ["gemma3", "qwen3", "zephyr", "thinking"])
def test_the_papers_mask_is_the_same(tokenizer, name):
    (path,) = [path for path in NAMED if path.stem == name]
    chance = random.Random(1)
    assert compare(tokenizer, path, [chat.group(chance) for _ in range(60)], paper_mask=True)["left"] == 0


def shared_groups(folder, stride):
    for path in sorted(folder.glob("*.jsonl*")):
        pairs = read_pairs(str(path), {"stride": stride})
        yield from (pairs.group(index) for index in range(len(pairs)))


@pytest.mark.shared_data
@pytest.mark.parametrize("path", NAMED, ids=lambda path: path.stem)
def test_shared_data_is_rendered_as_by_transformers(tokenizer, path, shared_data):
    groups = list(shared_groups(shared_data, 60))
    assert len(groups) > 100
    assert compare(tokenizer, path, groups)["left"] == 0


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("path", NAMED, ids=lambda path: path.stem)
def test_all_shared_data_is_rendered_as_by_transformers(tokenizer, path, shared_data):
    assert compare(tokenizer, path, shared_groups(shared_data, 1))["left"] == 0


def test_plain_rows_are_joined_as_they_are(tokenizer):
    chance = random.Random(2)
    slow, quick = Renderer(tokenizer, text_rows="plain"), fast(tokenizer, text_rows="plain")
    for _ in range(300):
        prompt = chat.content(chance) if chance.random() < 0.5 else ""
        responses = [chat.content(chance) for _ in range(chance.randint(2, 4))]
        assert quick.render(prompt, responses) == expected(slow, prompt, responses)


@pytest.mark.parametrize(
    ("options", "template", "prompt"),
    [
        ({"text_rows": "chat"}, None, "why"),
        ({}, None, [{"role": "user", "content": "why"}]),
        ({"text_rows": "plain"}, "{{ messages }}", [{"role": "user", "content": "why"}]),
        ({}, "{{ messages }}", ""),
    ],
)
def test_rows_and_options_that_do_not_go_together(tokenizer, options, template, prompt):
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="rows hold") as problem:
        Renderer(tokenizer, **options).render(prompt, ["so", "no"])
    with pytest.raises(ValueError, match="rows hold") as same:
        fast(tokenizer, name=tokenizer.name_or_path, **options).render(prompt, ["so", "no"])
    assert str(same.value) == str(problem.value)
