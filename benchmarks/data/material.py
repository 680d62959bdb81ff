"""What all parts measure: a tokenizer like Llama 3's in kind, and pairs of realistic length; made once, then kept.

Notable decisions:

- Prompts have a median of 148 tokens (p95 702), chosen responses 245 (849), rejected ones 232 (997), as lognormal
  lengths; one prompt in five is the third turn of a conversation. That is about 4.3 kB of JSON lines a pair.
- Responses have no white space at their ends, as those of published data sets: a composition that cuts the text behind
  the generation prompt is exact then.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.data.corpus import corpus
from grmlight.data import PrepareOptions
from grmlight.data.files import cache_directory

MOST = 2048
"""Tokens of a prompt with a response, at most."""

OPTIONS = PrepareOptions(max_length=MOST)

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

_VERSION = 1
_TEXT = 24_000_000
_BLOCK = 100_000
# Median and the logarithm's deviation, in tokens; rejected answers vary more.
_PROMPT, _CHOSEN, _REJECTED = (148, 0.946), (245, 0.755), (232, 0.886)


def folder() -> Path:
    """Where the material is kept."""
    return cache_directory() / "benchmarks" / f"data-{_VERSION}"


def tokenizer(vocabulary: int = 32_000, size: int = _TEXT) -> str:
    """The folder of a byte-level BPE trained on the machine's text, with ChatML's template and special tokens."""
    target = folder() / f"tokenizer-{vocabulary}-{size}"
    if not (target / "tokenizer_config.json").exists():
        bpe = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
        )
        text = _text(size)
        bpe.train_from_iterator((text[start : start + 10_000] for start in range(0, len(text), 10_000)), trainer)
        PreTrainedTokenizerFast(
            tokenizer_object=bpe, eos_token=SPECIALS[2], pad_token=SPECIALS[0], chat_template=CHATML
        ).save_pretrained(target)
    return str(target)


def pairs(count: int, size: int = _TEXT, first: int = 0) -> Path:
    """A file of `count` pairs; of one `first`, a longer file begins with a shorter one."""
    target = folder() / f"pairs-{size}-{first}-{count}.jsonl"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        text, written = _text(size), target.with_suffix(".part")
        with written.open("w", encoding="utf-8") as file:
            for start in range(0, count, _BLOCK):
                _write_block(file, text, first + start, min(_BLOCK, count - start))
        written.rename(target)
    return target


def head(source: Path, count: int, target: Path) -> Path:
    """The first rows of a file, as a file."""
    return part(source, 0, count, target)


def part(source: Path, first: int, count: int, target: Path) -> Path:
    """Rows of a file, as a file."""
    with source.open("rb") as rows, target.open("wb") as file:
        file.writelines(islice(rows, first, first + count))
    return target


def _text(size: int) -> str:
    kept = folder() / f"text-{size}.txt"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(corpus(size), encoding="utf-8")
    return kept.read_text(encoding="utf-8")


def _write_block(file: TextIO, text: str, first: int, count: int) -> None:
    draw = np.random.default_rng([_VERSION, first])
    lengths = [_lengths(draw, count, *shape) for shape in (_PROMPT, _CHOSEN, _REJECTED)]
    places = draw.random((count, 5))
    turns = draw.random(count) < 0.2
    for row in range(count):
        prompt, chosen, rejected = (int(each[row]) for each in lengths)
        messages = [{"role": "user", "content": _cut(text, places[row, 0], prompt)}]
        if turns[row] and prompt > 300:
            parts = [_cut(text, places[row, place], prompt // 3) for place in (0, 3, 4)]
            messages = [
                {"role": role, "content": part} for role, part in zip(("user", "assistant", "user"), parts, strict=True)
            ]
        answers = (_cut(text, places[row, 1], chosen), _cut(text, places[row, 2], rejected))
        sides = [[{"role": "assistant", "content": answer}] for answer in answers]
        line = {"prompt": messages, "chosen": sides[0], "rejected": sides[1]}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _lengths(draw: np.random.Generator, count: int, median: float, deviation: float) -> np.ndarray:
    """Characters: this text has about 4.2 a token."""
    return np.minimum(median * np.exp(deviation * draw.standard_normal(count)), 1700) * 4.2


def _cut(text: str, place: float, length: int) -> str:
    """A stretch of text without white space at its ends, some of which there always is."""
    start = int(place * (len(text) - 8_000))
    cut = text[start : start + max(length, 4)].strip()
    return cut or "Yes."
