"""The world's tokenizer: one token a word, in the Hugging Face format, with a chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from grmlight.lab.words import BOS, EOS, PAD, SEP, SPECIALS, UNKNOWN, VOCABULARY

if TYPE_CHECKING:
    from pathlib import Path

MAX_LENGTH = 128

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{% if message['role'] == 'user' %}}{{{{ '{BOS} ' + message['content'] }}}}"
    f"{{% elif message['role'] == 'assistant' %}}{{{{ ' {SEP} ' + message['content'] + ' {EOS}' }}}}"
    "{% else %}{{ raise_exception('the embedded world knows user and assistant only, not ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ ' {SEP}' }}}}{{% endif %}}"
)
"""Renders a prompt and its answer to `<bos> prompt <sep> answer <eos>`."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of every world: the words are the same, only the facts differ."""
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    backend = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.add_special_tokens(list(SPECIALS))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        sep_token=SEP,
        eos_token=EOS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def save_tokenizer(directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, the chat template inside the latter."""
    build_tokenizer().save_pretrained(directory, save_jinja_files=False)
