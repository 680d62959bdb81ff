"""HuggingFaceSampler: answers drawn from a model of this process, or of ranks that share one.

Notable decisions:

- Prompts of like length go together, shortest first, padded on the left. What a row says does not depend on that: in
  float32 log-probs agree to 1e-4 whatever the batch, and a token differs only where its random number falls within that
  rounding of a boundary.
- Models whose attention the packing gate has not proved standard are not padded: a batch has prompts of one length.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from tqdm.auto import tqdm
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from grmlight.data.names import resolve
from grmlight.data.options import PrepareOptions
from grmlight.data.tokenizer import load_tokenizer
from grmlight.export import load_options, model_folder
from grmlight.models import gate
from grmlight.models.backbone import BackboneConfig
from grmlight.models.decoding import Decoded, decode
from grmlight.models.hidden import rotary_limit
from grmlight.models.loading import read_kind
from grmlight.models.memory import is_memory_error
from grmlight.models.modes import evaluating
from grmlight.models.parallel import reshard
from grmlight.models.policy_model import PolicyModel
from grmlight.policy.draw import Picker
from grmlight.policy.reader import PromptReader
from grmlight.policy.rollouts import Answer, PromptText, Rollout, Rollouts, checked
from grmlight.policy.sampler import SamplingOptions

logger = logging.getLogger("grmlight")

Row = tuple[int, int]
"""A prompt, by its place in the call, and which of its samples."""


class HuggingFaceSampler:
    """Draws answers from a causal LM: adapters on, dropout off, without gradient; the model's mode stays what it was.

    Args:
        model: a policy, sharded or not, or transformers' own model.
        tokenizer: its fast tokenizer.
        options: how prompts become tokens; `max_length` is that of a prompt with its answer.
        progress: show a bar once it takes longer than two seconds.

    Errors: ValueError for a sharded model that is no `PolicyModel`.
    """

    name = "huggingface"

    def __init__(
        self,
        model: PolicyModel | PreTrainedModel,
        tokenizer: Any,
        options: PrepareOptions | None = None,
        progress: bool = True,
    ) -> None:
        if isinstance(model, FSDPModule) and not isinstance(model, PolicyModel):
            raise ValueError("a sharded model samples as a PolicyModel alone; shard it with grmlight.models.shard")  # noqa: TRY004
        self.model, self.tokenizer, self.progress = model, tokenizer, progress
        lm = model.lm if isinstance(model, PolicyModel) else model
        self._reader = PromptReader(tokenizer, options or PrepareOptions(), positions(lm.config))
        self._ends = self._reader.ends | end_tokens(lm.generation_config)
        self._padded = gate.packs(lm.config).ok
        self._most: int | None = None

    def refused(self, prompts: Sequence[PromptText], options: SamplingOptions) -> dict[int, str]:
        """Prompts that `generate` would refuse, by their place, and why."""
        return self._reader.refused(prompts, options.max_new_tokens)

    def generate(
        self, prompts: Sequence[PromptText], options: SamplingOptions, seed: int, numbers: Sequence[int] | None = None
    ) -> Rollouts:
        """See `Sampler`. Ranks that share a model all call, each with prompts of its own, and perhaps none.

        Errors: ValueError names the prompts that cannot be read, a single row that is too large for the memory, and a
        model whose log-probs are not finite.
        """
        began = time.perf_counter()
        token_ids = self._reader.read(prompts, options.max_new_tokens)
        found = self._decode(token_ids, options, seed, range(len(prompts)) if numbers is None else numbers)
        answers = {
            row: Answer(
                each.tokens, self.tokenizer.decode(each.tokens, skip_special_tokens=True), each.ended, each.logps
            )
            for row, each in found.items()
        }
        groups = tuple(
            Rollout(prompt, tokens, tuple(answers[place, sample] for sample in range(options.samples)))
            for place, (prompt, tokens) in enumerate(zip(prompts, token_ids, strict=True))
        )
        return checked(Rollouts(groups, self.name, time.perf_counter() - began), options.samples)

    def _decode(
        self, prompts: Sequence[np.ndarray], options: SamplingOptions, seed: int, numbers: Sequence[int]
    ) -> dict[Row, Decoded]:
        """The rows' continuations, batch by batch."""
        places = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        rows = [(place, sample) for place in places for sample in range(options.samples)]
        turns = self._turns(rows, prompts, options)
        found: dict[Row, Decoded] = {}
        hidden = not self.progress or (torch.distributed.is_initialized() and torch.distributed.get_rank() != 0)
        with (
            tqdm(total=len(rows), desc="sampling", unit=" answers", delay=2, disable=hidden) as bar,
            evaluating(self.model),
        ):
            while turns > 0 or len(found) < len(rows):
                batch = rows[len(found) : self._end(rows, len(found), prompts, options)]
                drawn = self._draw(batch, prompts, options, seed, numbers)
                found |= zip(batch, drawn, strict=False)
                turns -= 1
                bar.update(len(drawn))
        if isinstance(self.model, FSDPModule):
            reshard(self.model)
        return found

    def _turns(self, rows: Sequence[Row], prompts: Sequence[np.ndarray], options: SamplingOptions) -> int:
        """Where ranks share the model: the batches of the rank that has most of them."""
        if not isinstance(self.model, FSDPModule):
            return 0
        first, batches = 0, 0
        while first < len(rows):
            first, batches = self._end(rows, first, prompts, options), batches + 1
        most = torch.tensor(batches, device=self._device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return int(most)

    def _end(self, rows: Sequence[Row], first: int, prompts: Sequence[np.ndarray], options: SamplingOptions) -> int:
        """Where a batch ends that begins at a row: as many as fit, of one length where nothing may be padded."""
        end = min(first + min(self._most or options.rows_per_batch, options.rows_per_batch), len(rows))
        if not self._padded:
            while end > first and len(prompts[rows[end - 1][0]]) != len(prompts[rows[first][0]]):
                end -= 1
        return end

    def _draw(
        self,
        batch: Sequence[Row],
        prompts: Sequence[np.ndarray],
        options: SamplingOptions,
        seed: int,
        numbers: Sequence[int],
    ) -> list[Decoded]:
        """One batch; none of it if it does not fit into the memory, and smaller ones from then on."""
        places = list(dict.fromkeys(place for place, _ in batch))
        owner = {place: number for number, place in enumerate(places)}
        streams = [(numbers[place], sample) for place, sample in batch]
        pick = Picker(options.temperature, options.top_p, options.top_k, seed, streams)
        given = [prompts[place] for place in places], [owner[place] for place, _ in batch], pick, self._ends
        try:
            if isinstance(self.model, PolicyModel):
                with torch.no_grad():
                    return self.model.generate(*given, options.max_new_tokens)
            return decode(self.model, *given, options.max_new_tokens)
        except RuntimeError as error:
            # Ranks that share the model would wait for this one for ever.
            if not is_memory_error(error) or isinstance(self.model, FSDPModule):
                raise
        self._halve(len(batch))
        return []

    def _halve(self, rows: int) -> None:
        """Draw half as many at once from now on, and say so the first time."""
        if rows == 1:
            raise ValueError("out of memory with a single answer; lower max_new_tokens, or sample on a larger device")
        if self._most is None:
            logger.warning(
                "out of memory: sampling goes on with fewer answers at once (%d did not fit); set rows_per_batch lower "
                "to begin there",
                rows,
            )
        self._most = rows // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def open_huggingface(name: str) -> HuggingFaceSampler:
    """The sampler of a model folder, a run directory or a hub name, on a GPU if there is one.

    Errors: ValueError in one line for what is no causal LM, or cannot be loaded.
    """
    folder, options = locate(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "bfloat16" if device == "cuda" else "float32"
    model = PolicyModel(BackboneConfig(name=folder, dtype=dtype, frozen=True)).to(device)
    return HuggingFaceSampler(model, load_tokenizer(folder, options.chat_template), options)


def locate(name: str) -> tuple[str, PrepareOptions]:
    """Where a policy's weights are, and how its prompts are read: as the folder says, or as by default.

    Errors: ValueError in one line for a path that holds no causal LM.
    """
    found = Path(resolve(name, "policy"))
    if not found.is_dir():
        return name, PrepareOptions()
    folder = model_folder(found)
    if (kind := read_kind(folder)) not in ("reward", "policy"):
        raise ValueError(f"{name}: is of kind {kind}, which answers nothing; name a causal LM")
    return str(folder), load_options(folder)


def positions(config: PretrainedConfig) -> int | None:
    """Tokens that a model can read at once, its answer included; None without a limit."""
    text = config.get_text_config(decoder=True)
    known = (getattr(text, "max_position_embeddings", None), rotary_limit(config))
    return min((limit for limit in known if limit), default=None)


def end_tokens(generation: GenerationConfig | None) -> frozenset[int]:
    """The tokens that end an answer by a model's own word."""
    ends = None if generation is None else generation.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or [])
