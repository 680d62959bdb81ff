"""What every variant trains: one model folder, one tokenizer, one file of pairs, and their token ids."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.train.shapes import Pair
from grmlight.data import GroupLoader, PrepareOptions, prepare
from grmlight.data.batch import GroupBatch

TINY = {
    "hidden_size": 384,
    "intermediate_size": 896,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "vocab_size": 3072,
    "max_position_embeddings": 4096,
}
"""Linear weights: 3.24M in the layers and 1.18M in the LM head, the relation of models of one to two billion."""

OPTIONS = PrepareOptions(max_length=2048, text_rows="plain")


@dataclasses.dataclass(frozen=True)
class Material:
    """Files and token ids of one benchmark batch.

    Attributes:
        folder: holds `model/` (a causal LM of transformers with its tokenizer), `score.safetensors` and `pairs.jsonl`.
        ids: for each pair the token ids of chosen and rejected, each with its prompt.
        prompts: for each pair the tokens of its prompt.
        batch: the same pairs as one pack.
    """

    folder: Path
    ids: list[tuple[list[int], list[int]]]
    prompts: list[int]
    batch: GroupBatch

    @property
    def model(self) -> str:
        """The model folder."""
        return str(self.folder / "model")

    @property
    def score(self) -> torch.Tensor:
        """The weights of the score head, [1, H]."""
        return load_file(self.folder / "score.safetensors")["score"]

    @property
    def pairs(self) -> str:
        """The file of pairs."""
        return str(self.folder / "pairs.jsonl")


def make_model(folder: Path, entries: dict[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """A Llama with random weights, a tokenizer of one token a word, and beside it the weights of a score head."""
    torch.manual_seed(0)
    config = LlamaConfig(**entries, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    score = torch.randn(1, config.hidden_size) * config.hidden_size**-0.5
    save_file({"score": score}, folder.parent / "score.safetensors")
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(folder)


def make_material(
    folder: Path, pairs: list[Pair], entries: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32
) -> Material:
    """Write the files and read them as a run would."""
    if not (folder / "model").exists():
        make_model(folder / "model", entries or TINY, dtype)
    draw = np.random.default_rng(1)
    vocabulary = (entries or TINY)["vocab_size"]

    def words(count: int) -> str:
        return " ".join(f"w{number}" for number in draw.integers(3, vocabulary, count))

    # The end of a response is a token more.
    rows = [
        {"prompt": words(prompt), "chosen": f" {words(chosen - 1)}", "rejected": f" {words(rejected - 1)}"}
        for prompt, chosen, rejected in pairs
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with cache(folder):
        found = prepare(str(folder / "pairs.jsonl"), str(folder / "model"), OPTIONS)
    assert found.report["used"] == len(pairs), found.report
    (batch,) = GroupLoader(found.store, len(pairs))
    ids, prompts = _token_ids(batch)
    assert [sum(map(len, both)) for both in ids] == [2 * prompt + one + other for prompt, one, other in pairs]
    return Material(folder, ids, prompts, batch)


def _token_ids(batch: GroupBatch) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
    tokens, layout = batch.input_ids_T.tolist(), batch.layout
    segments = [tokens[start:end] for start, end in zip(layout.bounds, layout.bounds[1:], strict=False)]
    whole = [segments[layout.prefix[response]] + segments[response] for response in layout.responses]
    prompts = [len(segments[layout.prefix[response]]) for response in layout.responses]
    return [(whole[row], whole[row + 1]) for row in range(0, len(whole), 2)], prompts[::2]


@contextlib.contextmanager
def cache(folder: Path) -> Iterator[None]:
    """Keep prepared data beside the rest of the material."""
    before = os.environ.get("GRMLIGHT_CACHE")
    os.environ["GRMLIGHT_CACHE"] = str(folder / "cache")
    try:
        yield
    finally:
        os.environ.pop("GRMLIGHT_CACHE")
        if before is not None:
            os.environ["GRMLIGHT_CACHE"] = before
