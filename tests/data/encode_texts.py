"""Texts and tokenizers on which engines differ if they differ."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "[UNK]"]
WORDS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}
FAMILIES = ("gpt2", "llama3", "qwen2", "metaspace", "gemma", "unigram", "wordpiece")


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings_in(each)


def shared_texts() -> Iterator[str]:
    """Every text of the shared data."""
    folder = os.environ.get("GRMLIGHT_SHARED_DATA")
    for path in sorted(Path(folder).glob("*.jsonl*")) if folder else []:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for line in content.splitlines():
            try:
                yield from strings_in(json.loads(line))
            except ValueError:
                yield line.decode(errors="replace")


def package_lines() -> Iterator[str]:
    """Lines of the installed packages' sources and documentation, in an order that mixes the packages."""
    site = Path(sysconfig.get_paths()["purelib"])
    files = [path for path in site.rglob("*") if path.suffix in {".py", ".md", ".rst", ".txt", ".pyi"}]
    files.sort()
    random.Random(0).shuffle(files)
    for path in files:
        try:
            yield from path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (UnicodeDecodeError, OSError):
            continue


def real_texts(count: int) -> list[str]:
    """Distinct texts of the shared data, and lines of the installed packages."""
    seen: dict[str, None] = {}
    for text in itertools.chain(itertools.islice(shared_texts(), count // 2), package_lines()):
        seen[text] = None
        if len(seen) == count:
            break
    return list(seen)


PIECES = [
    *SPECIAL,
    *(special[:-1] for special in SPECIAL),
    *("\u0301", "\u0300\u0327", "e\u0301", "\u1112\u1161\u11ab", "\u212b", "\ufb01", "\u1e9b\u0323", "\u0345"),
    *(" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\u00a0", "\u3000", "\u2028", "\u0085", "\x0b"),
    *("\0", "\x01", "\x7f", "\u00ad", "\u200b", "\u200d", "\ufeff", "\ufffd", "\U0010ffff", "\ue000"),
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\U0001f44d\U0001f3fd"),
    *("\u05e9\u05c1\u05dc\u05d5\u05dd", "\u0627\u0644\u0633\u0644\u0627\u0645", "\u202e", "\u202c", "\u061c"),
    *(
        "\u4f60\u597d",
        "\u3053\u3093",
        "\ud55c\uad6d",
        "\u0e2a\u0e27\u0e31",
        "\u0928\u092e\u0938\u094d",
        "\u0130",
        "\u00df",
    ),
    *("a", "b", "the", " the", "Hello", "'s", "'LL", "don't", "I'", "0", "12", "1234567", "\u0663", "\u00bd", "3.14"),
    *(
        ".",
        "...",
        "!?",
        "#",
        "##",
        "//",
        "_",
        "x_y",
        "camelCase",
        "{}",
        "\u2581",
        "\u2581a",
        "<0x0A>",
        "\u0120",
        "<|",
        "|>",
    ),
    *("a" * 40, " " * 33, "-" * 37, "\n" * 21, "\U0001f600" * 11, "ab" * 30, "\u0301" * 17),
]


def fuzzed_texts(count: int, seed: int) -> list[str]:
    """Texts that nobody wrote: pieces on which tokenizers stumble, end to end."""
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randint(1, 8))) for _ in range(count)]


def family(name: str, text: list[str]) -> Tokenizer:
    """A tokenizer of one of the families, trained on texts."""
    if name in WORDS:
        return byte_level(name, text)
    if name == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=2000, special_tokens=SPECIAL, show_progress=False)
    elif name == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=1000, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    else:
        return sentence_piece(name, text)
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def byte_level(name: str, text: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS[name]), "isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, spell])
    if name == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    trimming = processors.ByteLevel(trim_offsets=name == "gpt2", add_prefix_space=name != "gpt2")
    tokenizer.post_processor = processors.Sequence([trimming, template])
    return tokenizer


def sentence_piece(name: str, text: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if name == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=[*SPECIAL, *bytes_], limit_alphabet=200, show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in bytes_]
    return Tokenizer.from_str(json.dumps(content))
