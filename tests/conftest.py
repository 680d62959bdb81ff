"""Fixtures that every test may use: the shared preference data, a tokenizer, and single-threaded torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared preference data. Without it the test is skipped, or fails if GRMLIGHT_REQUIRE_SHARED_DATA is set."""
    repository = Path(__file__).parent.parent
    folder = Path(os.environ.get("GRMLIGHT_SHARED_DATA", repository.parent / "shared" / "data"))
    if not folder.is_dir():
        message = f"shared preference data not found at {folder}; set GRMLIGHT_SHARED_DATA"
        if os.environ.get("GRMLIGHT_REQUIRE_SHARED_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Where the shared data is required, a test that needs it and is skipped has failed."""
    report = yield
    if report.skipped and os.environ.get("GRMLIGHT_REQUIRE_SHARED_DATA") and item.get_closest_marker("shared_data"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} needs the shared data, which is required, and was skipped"
    return report


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory) -> Path:
    """A folder with a byte-level tokenizer of 300 tokens and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(
        ["the cat and the dog said that it was not so", "why is the red house green"] * 20, trainer
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    wrapped.chat_template = CHAT_TEMPLATE
    folder = tmp_path_factory.mktemp("tokenizer")
    wrapped.save_pretrained(folder)
    return folder
