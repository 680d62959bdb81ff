import pytest
from transformers import LlamaForCausalLM

from grmlight.lab import world_files
from grmlight.lab.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def shipped():
    return world_files()


@pytest.fixture(scope="session")
def lm(shipped):
    return LlamaForCausalLM.from_pretrained(shipped.lm).eval()


@pytest.fixture(scope="session")
def words():
    """The world's tokenizer."""
    return build_tokenizer()
