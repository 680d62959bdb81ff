"""Rows, tokenizers and renderings for the tests of the Rust extension."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from grmlight._data_rs import Pairs, Preparation, read_pairs
from tests.data import oracle

SPECIAL = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def lines(*rows: Any) -> bytes:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


def content_of(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def agree(source: str | bytes, data: bytes | None = None, **options) -> tuple[Pairs, oracle.Reading]:
    """Read with Rust and with the oracle, which must find the same."""
    pairs = read_pairs(source, options)
    reading = oracle.read(source if isinstance(source, bytes) else data, **options)
    assert (pairs.rows, pairs.skipped) == (reading.rows, reading.skipped)
    assert pairs.refused == reading.refused
    assert pairs.noted == reading.noted
    assert len(pairs) == len(reading.pairs)
    for index, pair in enumerate(reading.pairs):
        assert pairs.row(index) == pair.row
        assert pairs.group(index) == (pair.prompt, pair.responses)
    return pairs, reading


def byte_level(text: list[str], vocab: int = 400) -> Tokenizer:
    """Byte-level BPE with special tokens that its post-processor adds on request."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def split_by_regex(text: list[str]) -> Tokenizer:
    """Byte-level BPE of words that a Unicode regular expression with a look-ahead cuts, in composed form."""
    tokenizer = byte_level(text)
    words = r"\p{N}{1,3}|\s?\p{L}[\p{L}\p{M}]*|[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def unigram(text: list[str]) -> Tokenizer:
    """Metaspace unigrams that see lower-case NFKC: offsets of another kind."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=[*SPECIAL, "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def render(prompt: Any, responses: list[Any]) -> tuple[Any, list[int]]:
    """The texts of a group and where their responses begin: markers around messages, plain text as it is."""
    if isinstance(prompt, str):
        return [prompt + response for response in responses], [len(prompt)] * len(responses)
    if any("refuse this" in message["content"] for message in prompt):
        return "the template refuses this", []

    def chat(messages: list[Any]) -> str:
        return "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in messages)

    heads = [chat(prompt + response[:-1]) + "<|assistant|>" for response in responses]
    return [chat(prompt + response) for response in responses], [len(head) for head in heads]


def render_all(pairs: Pairs) -> tuple[list[Any], list[list[int]]]:
    rendered = [render(*pairs.group(index)) for index in range(len(pairs))]
    return [texts for texts, _ in rendered], [boundaries for _, boundaries in rendered]


def as_callback(prompt: Any, responses: list[Any]) -> Any:
    """`render`, as a preparation asks for it."""
    texts, boundaries = render(prompt, responses)
    return texts if isinstance(texts, str) else (texts, boundaries)


def begin(directory: Path, source: Any, tokenizer: Tokenizer, window: int = 100, identity: str = "test", **options):
    """A preparation; the options are those of reading and writing, and offset and limit."""
    write = {name: options.pop(name) for name in WRITE_OPTIONS & options.keys()}
    places = {name: options.pop(name) for name in ("offset", "limit") if name in options}
    write |= {name: options[name] for name in ("on_bad_row",) if name in options}
    settings = {"read": options, "write": write, "window": window} | places
    return Preparation.begin(source, directory, identity, tokenizer.to_str(), settings)


WRITE_OPTIONS = {"max_length", "on_overlong", "add_special_tokens", "append_token"}


def write_store(directory: Path, source: Any, tokenizer: Tokenizer, window: int = 100, **options) -> dict[str, Any]:
    """Prepare a source in windows; the report."""
    preparation = begin(directory, source, tokenizer, window, **options)
    assert preparation is not None
    try:
        while preparation.advance(as_callback):
            pass
        return json.loads(preparation.finish({"identity": "test"}))
    finally:
        preparation.close()
