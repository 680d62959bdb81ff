"""Asking a causal LM of this machine: which letter is likelier to come next?"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch

from grmlight.data.tokenizer import load_tokenizer
from grmlight.labeling.ask import Letter, Question
from grmlight.models.backbone import BackboneConfig, decoder, language_head, load_backbone, read_config


class LocalAsker:
    """Any causal LM: a folder or a hub name. It compares the logits of the two letters, so every reply is readable.

    Args:
        model: its name.
        device: where it runs; default: a GPU if there is one.

    Errors: ValueError in one line for what cannot be loaded.
    """

    parallel = 1

    def __init__(self, model: str, device: str | None = None) -> None:
        self.name = model
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        options = BackboneConfig(name=model, frozen=True)
        if self.device.type == "cuda":
            options = dataclasses.replace(options, dtype="bfloat16")
        self.tokenizer = load_tokenizer(model)
        config = read_config(options)
        self._positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
        lm: Any = load_backbone(options, config).eval()
        self.lm = lm.to(self.device)

    @torch.inference_mode()
    def ask(self, question: Question) -> Letter | None:
        """The likelier letter; None if both are equally likely."""
        before, letters = self._tokens(question)
        if self._positions is not None and len(before) > self._positions:
            raise ValueError(
                f"a question has {len(before)} tokens and {self.name} has {self._positions} positions; leave long "
                "pairs out, or ask another model"
            )
        ids = torch.tensor([before], device=self.device)
        hidden_H = decoder(self.lm)(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
        logits_V = language_head(self.lm)(hidden_H).float()
        # What an architecture does to its logits after this (scales, caps) keeps their order.
        difference = float(logits_V[letters[0]] - logits_V[letters[1]])
        return None if difference == 0 else "A" if difference > 0 else "B"

    def _tokens(self, question: Question) -> tuple[list[int], tuple[int, int]]:
        """The tokens that both replies share, and the first that tells them apart, whatever letters merge with."""
        if self.tokenizer.chat_template:
            turn = [{"role": "user", "content": question.text}]
            asked = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        else:
            asked = f"{question.text}\nAnswer: "
        replies = [self.tokenizer(asked + letter, add_special_tokens=False)["input_ids"] for letter in "AB"]
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*replies, strict=False)))
        if not 0 < shared < min(map(len, replies)):
            raise ValueError(f"{self.name}: its tokenizer does not tell the letters A and B apart; ask another model")
        return replies[0][:shared], (replies[0][shared], replies[1][shared])
