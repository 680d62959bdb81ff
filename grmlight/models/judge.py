"""Judge: any causal LM as a scorer of answers, by the log-odds of the tokens A and B. A baseline without training.

Notable decisions:

- Every two answers are asked about in both orders, and the mean counts: a preference for a place cancels exactly.
- All questions about a prompt are one group of a pack, so what they begin with is computed once.
- What is asked, and so every score, depends on the texts alone: questions are sorted before they are packed, so that
  swapped answers give bit for bit the negated scores.
- Suffixes: Q questions, K answers to a prompt, F tokens that stand for a letter, H hidden size.

Source: Zheng et al. 2023 (LLM as a judge; swapped positions).
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from grmlight.data.encode import TokenGroup, cost, in_batches, pack
from grmlight.data.files import write_json, write_whole
from grmlight.data.texts import GroupError, TextGroup
from grmlight.data.tokenizer import load_tokenizer
from grmlight.models import gate
from grmlight.models.attention import PACKED
from grmlight.models.backbone import BackboneConfig, decoder, language_head, load_backbone, read_config
from grmlight.models.hidden import packed_states, rotary_limit
from grmlight.models.judge_prompt import TEMPLATE, JudgePrompt
from grmlight.models.logprobs import LogitTransform, chunk_logits
from grmlight.models.modes import evaluating
from grmlight.models.padded import padded_states

KIND = "judge"
_OPTIONS_FILE, _TEMPLATE_FILE = "grmlight.json", "template.txt"


class Judge(nn.Module):
    """A causal LM that says which of two answers is better.

    Args:
        name: a hub name, a folder, or `package:MODULE/PATH`, with the LM and its tokenizer.
        template: see `JudgePrompt`.
        dtype: of the weights: "float32" or "bfloat16".
        tokens_per_batch: tokens of one forward, at most, unless a single group has more; scores do not depend on it.

    Raises:
        ValueError: a model, tokenizer or template that cannot be used, in one line.
    """

    def __init__(
        self, name: str, template: str = TEMPLATE, dtype: str = "float32", tokens_per_batch: int = 16_384
    ) -> None:
        super().__init__()
        self.name, self.tokens_per_batch = name, tokens_per_batch
        self.prompt = JudgePrompt(load_tokenizer(name), template)
        self._backbone = BackboneConfig(name=name, dtype=dtype, frozen=True)  # pyright: ignore[reportArgumentType]
        config = read_config(self._backbone)
        passed = gate.packs(config)
        self.packed = passed.ok
        lm = load_backbone(self._backbone, config, PACKED if self.packed else None)
        assert isinstance(lm, PreTrainedModel)
        self.lm = lm.eval()
        fault = "" if self.packed else gate.pads(config)
        if gate.padding_fault(self.lm) if fault is None else fault:
            raise ValueError(f"{name} can be neither packed nor padded exactly; choose another model as a judge")
        if not (gate.logps_agree(lm) if passed.logps is None else passed.logps):
            raise ValueError(f"{name} computes its logits in a way that grmlight does not know; choose another judge")
        text = config.get_text_config(decoder=True)
        limits = rotary_limit(config), getattr(text, "max_position_embeddings", None)
        self._longest = min((limit for limit in limits if limit is not None), default=None)
        self._transform = LogitTransform.of(config)

    def score(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        """For each group a reward an answer, in the order given.

        With d[i, j] the log-odds that answer i is better than j, the mean of both orders, in nats, reward i is the mean
        of d[i, j] over all K answers j (d[i, i] = 0): the scores whose differences fit d best in least squares. Two
        answers get d / 2 and -d / 2, so the Bradley-Terry probability of their difference is the judge's own.

        Raises:
            GroupError: a question longer than the model's positions, or one that the chat template refuses.
        """
        orders = [list(itertools.permutations(range(len(group.responses)), 2)) for group in groups]
        return [
            _rewards(len(group.responses), odds)
            for group, odds in zip(groups, self.log_odds(groups, orders), strict=True)
        ]

    def log_odds(
        self, groups: Sequence[TextGroup], orders: Sequence[Sequence[tuple[int, int]]]
    ) -> list[dict[tuple[int, int], float]]:
        """For each group and two of its answers the log-odds, in nats, that the one shown as A is the better one.

        Args:
            groups: prompts with their answers.
            orders: for each group what is asked: (answer shown as A, answer shown as B), by their places.

        Raises:
            GroupError: a question longer than the model's positions, or one that the chat template refuses.
        """
        questions = self._questions(groups, orders)
        for place, asked in enumerate(questions):
            longest = max(map(len, asked.values()), default=0)
            if self._longest is not None and longest > self._longest:
                raise GroupError(
                    place,
                    f"makes a question of {longest} tokens and {self.name} takes {self._longest}; leave it out or "
                    "choose a judge of more positions",
                )
        found = self._answer({tuple(sorted({*map(tuple, asked.values())})) for asked in questions if asked})
        return [{pair: found[tuple(ids)] for pair, ids in asked.items()} for asked in questions]

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write a folder of kind "judge": the LM's name and dtype, and the template. The LM stays where it is."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        lm = str(Path(self.name).resolve()) if Path(self.name).is_dir() else self.name
        write_whole(folder / _TEMPLATE_FILE, self.prompt.template)
        write_json(folder / _OPTIONS_FILE, {"kind": KIND, "lm": lm, "dtype": self._backbone.dtype})

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str], tokens_per_batch: int = 16_384) -> Self:
        """Open a folder of kind "judge": `grmlight.json` with `kind` and `lm`, and `template.txt` if it is not ours.

        Raises:
            ValueError: no such folder, or a model that cannot be used; one line.
        """
        path = Path(directory) / _OPTIONS_FILE
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            if entries.get("kind") != KIND or not isinstance(entries.get("lm"), str):
                raise ValueError('it needs "kind": "judge" and "lm": a folder or a hub name')  # noqa: TRY301
            template = path.with_name(_TEMPLATE_FILE)
            text = template.read_text(encoding="utf-8") if template.exists() else TEMPLATE
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: cannot be read as a judge ({error})") from error
        return cls(entries["lm"], text, entries.get("dtype", "float32"), tokens_per_batch)

    def _questions(
        self, groups: Sequence[TextGroup], orders: Sequence[Sequence[tuple[int, int]]]
    ) -> list[dict[tuple[int, int], list[int]]]:
        """For each group the token ids of its questions, by (answer A, answer B)."""
        texts: list[str] = []
        for place, (group, pairs) in enumerate(zip(groups, orders, strict=True)):
            try:
                texts += [self.prompt.render(group.prompt, group.responses[i], group.responses[j]) for i, j in pairs]
            except ValueError as error:
                raise GroupError(place, f"cannot be asked about: {error}") from error
        ids = iter(self.prompt.tokenize(texts))
        return [{pair: next(ids) for pair in pairs} for pairs in orders]

    @torch.inference_mode()
    def _answer(self, groups: set[tuple[tuple[int, ...], ...]]) -> dict[tuple[int, ...], float]:
        """The log-odds of A against B of every question."""
        device, head = next(self.lm.parameters()).device, language_head(self.lm)
        letters = torch.tensor([id_ for ids in self.prompt.tokens_2F for id_ in ids], device=device)
        weight_FH, bias_F = head.weight[letters], None if head.bias is None else head.bias[letters]
        found: dict[tuple[int, ...], float] = {}
        ordered = sorted(groups, key=lambda group: (-cost(_unscored(group)), group))
        with evaluating(self.lm):
            for part in in_batches(ordered, lambda group: cost(_unscored(group)), self.tokens_per_batch):
                batch = pack([_unscored(group) for group in part]).to(device)
                states = (packed_states if self.packed else padded_states)(decoder(self.lm), batch)
                logits_QF = chunk_logits(states.at_last(), weight_FH, bias_F, self._transform)
                first_QF, second_QF = logits_QF.chunk(2, dim=1)
                odds_Q = first_QF.logsumexp(dim=1) - second_QF.logsumexp(dim=1)
                asked = (question for group in part for question in group)
                found |= zip(asked, odds_Q.tolist(), strict=True)
        return found


def _unscored(group: Sequence[Sequence[int]]) -> TokenGroup:
    """Questions as a group of which only the state at each one's end is asked for."""
    return TokenGroup(tuple(np.array(ids, dtype=np.int64) for ids in group), tuple(map(len, group)))


def _rewards(answers: int, odds: dict[tuple[int, int], float]) -> list[float]:
    """Rewards of K answers from the log-odds of each ordered two."""

    def against(i: int, j: int) -> float:
        return 0.0 if i == j else (odds[i, j] - odds[j, i]) / 2

    return [sum(against(i, j) for j in range(answers)) / answers for i in range(answers)]
