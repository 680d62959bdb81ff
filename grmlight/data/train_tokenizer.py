"""A tokenizer trained on the pairs themselves, for models that start from nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from grmlight._data_rs import read_pairs
from grmlight.data.files import remove, temporary_sibling
from grmlight.data.source import fingerprint, pair_source

TRAIN = "train:"
END = "<|end|>"
PAD = "<|pad|>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def trained_tokenizer(name: str, source: str, cache: Path) -> str:
    """The folder of a tokenizer for `train:SIZE`, trained on a source the first time; other names stay as they are.

    Errors: ValueError if SIZE is no number of at least 300 (256 bytes and the special tokens), or without a source.
    """
    if not name.startswith(TRAIN):
        return name
    size = name.removeprefix(TRAIN)
    if not size.isdecimal() or int(size) < 300:
        raise ValueError(f"tokenizer {name!r}: write train:SIZE with a SIZE of at least 300, as in train:4096")
    if not source:
        raise ValueError(f"tokenizer {name!r} is trained on the training pairs; set data.init_args.train to them")
    target = cache / f"{fingerprint(source)[:32]}-{size}"
    if not target.exists():
        _train(source, int(size), target)
    return str(target)


def _train(source: str, size: int, target: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, END, *(f"<|{role}|>" for role in ROLES)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.train_from_iterator(_texts(source), trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    wrapped.chat_template = CHAT_TEMPLATE
    temporary = temporary_sibling(target)
    try:
        wrapped.save_pretrained(temporary)
        temporary.rename(target)
    except OSError:
        if not target.exists():  # another process may have been first
            raise
    finally:
        remove(temporary)


def _texts(source: str) -> Iterator[str]:
    """Every prompt and response of the usable pairs."""
    pairs = read_pairs(pair_source(source), {"name": source})
    for index in range(len(pairs)):
        prompt, responses = pairs.group(index)
        for text in (prompt, *responses):
            yield from [text] if isinstance(text, str) else [message["content"] for message in text]
