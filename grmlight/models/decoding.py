"""Decoding: rows of a causal LM's own continuations, drawn token by token, with keys and values cached.

Notable decisions:

- A loop of our own and not transformers' `generate`: a prompt is read once for all its rows, rows that have ended leave
  the batch, what draws a token knows the row's number, log-probs are taken on the way, and ranks that share a model
  stop together, within one registered forward.
- Prompts are padded on the left, under positions and a mask that make the padding invisible. Only models whose
  attention the packing gate has proved standard are padded; for others the caller gives prompts of one length.
- A packed model decodes with transformers' own attention, which knows caches, and has its packed one back afterwards.
- Shape suffixes: P prompts, R rows, V vocabulary, T tokens so far.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from grmlight.models.attention import PACKED

Pick = Callable[[Float[Tensor, "R V"], Int[Tensor, " R"], int], Int[Tensor, " R"]]
"""Draws the next token of some rows: from their float32 logits, the rows' numbers, and the number of the token."""

_DROPPED = 1 / 8
"""Share of ended rows from which a batch is made smaller: doing so copies the cache."""


class Decoded(NamedTuple):
    """One row's continuation.

    Attributes:
        tokens: what was drawn, the end token included; int64.
        logps: each token's log-prob under the untruncated distribution at temperature 1, float32, in nats.
        ended: whether it ended by itself, rather than being cut off at the limit.
    """

    tokens: np.ndarray
    logps: np.ndarray
    ended: bool


@torch.no_grad()
def decode(
    lm: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    owners: Sequence[int],
    pick: Pick,
    ends: Collection[int],
    limit: int,
    together: bool = False,
) -> list[Decoded]:
    """Continue prompts.

    Args:
        lm: a causal LM in eval mode; it may have adapters inside.
        prompts: token ids, at least one each.
        owners: for each row the prompt that it continues.
        pick: draws tokens.
        ends: tokens after which a row has ended.
        limit: longest continuation, the end token included.
        together: ranks share the model: all of them go on until the last one's last row has ended. A rank without rows
            calls too, and runs a row of its own that nobody sees.

    Returns:
        The rows' continuations, in order.

    Errors: ValueError for a model without a cache of transformers' common kind.
    """
    with own_attention(lm):
        rows = _Rows(lm, prompts, owners, ends, limit)
        for step in range(limit):
            rows.take(pick, step)
            if step + 1 == limit or not _any_left(rows.left, together, rows.device):
                break
            rows.forward()
    return rows.results()


@contextlib.contextmanager
def own_attention(lm: PreTrainedModel) -> Iterator[None]:
    """The attention that transformers would choose, for a while, where it is the packed one."""
    if (before := lm.config._attn_implementation) != PACKED:
        yield
        return
    lm.set_attn_implementation(lm.get_correct_attn_implementation(None))
    try:
        yield
    finally:
        lm.set_attn_implementation(before)


class _Rows:
    """The rows of a batch that are still in it, and what has been drawn of all."""

    def __init__(
        self,
        lm: PreTrainedModel,
        prompts: Sequence[np.ndarray],
        owners: Sequence[int],
        ends: Collection[int],
        limit: int,
    ) -> None:
        self.lm, self.device, self.count = lm, next(lm.parameters()).device, len(owners)
        self._cache_name = _cache_name(lm)
        self._cache = DynamicCache(config=lm.config)
        owner_R = torch.tensor(list(owners) or [0], device=self.device)
        rows = len(owner_R)
        self.left = self.count
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64, device=self.device)
        self._row_R = torch.arange(rows, device=self.device)
        self._going_R = torch.full((rows,), bool(self.count), device=self.device)
        self._tokens_RL = torch.zeros(rows, limit, dtype=torch.int64, device=self.device)
        self._logps_RL = torch.zeros(rows, limit, device=self.device)
        self._length_R = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self._ended_R = torch.zeros(rows, dtype=torch.bool, device=self.device)
        self._prefill(prompts or [np.zeros(1, np.int64)], owner_R)

    def _prefill(self, prompts: Sequence[np.ndarray], owner_R: Int[Tensor, " R"]) -> None:
        """Read each prompt once, then give its keys and values to each of its rows."""
        lengths = [len(prompt) for prompt in prompts]
        width = max(lengths)
        padded = min(lengths) < width
        token_PT = np.zeros((len(prompts), width), np.int64)
        mask_PT = np.zeros((len(prompts), width), np.int64)
        for number, prompt in enumerate(prompts):
            token_PT[number, width - len(prompt) :] = prompt
            mask_PT[number, width - len(prompt) :] = 1
        self._mask_RT = torch.from_numpy(mask_PT).to(self.device) if padded else None
        positions = None if self._mask_RT is None else (self._mask_RT.cumsum(1) - 1).clamp(min=0)
        self._run(torch.from_numpy(token_PT).to(self.device), positions)
        self._position_R = torch.tensor(lengths, device=self.device)
        if len(prompts) != len(owner_R) or not torch.equal(owner_R, self._row_R):
            self._select(owner_R)

    def _run(self, token_RT: Int[Tensor, "R T"], position_RT: Int[Tensor, "R T"] | None) -> None:
        """One forward; its logits at the last token."""
        given: dict[str, Any] = {self._cache_name: self._cache, "use_cache": True, "logits_to_keep": 1}
        if self._mask_RT is not None:
            given |= {"attention_mask": self._mask_RT, "position_ids": position_RT}
        self._logits_RV = self.lm(input_ids=token_RT, **given).logits[:, -1].float()

    def _select(self, index_R: Int[Tensor, " r"]) -> None:
        """Keep some rows, perhaps several times."""
        self._cache.reorder_cache(index_R)  # pyright: ignore[reportArgumentType]
        self._logits_RV, self._position_R = self._logits_RV[index_R], self._position_R[index_R]
        if self._mask_RT is not None:
            self._mask_RT = self._mask_RT[index_R]

    def take(self, pick: Pick, step: int) -> None:
        """Draw each row's next token; note those of the rows that go on."""
        self._token_R = pick(self._logits_RV, self._row_R, step)
        logps_R = self._logits_RV.log_softmax(-1).gather(1, self._token_R[:, None]).squeeze(1)
        going = self._row_R[self._going_R]
        self._tokens_RL[going, step] = self._token_R[self._going_R]
        self._logps_RL[going, step] = logps_R[self._going_R]
        self._length_R[going] = step + 1
        ended_R = self._going_R & torch.isin(self._token_R, self._ends)
        self._ended_R[self._row_R[ended_R]] = True
        self._going_R = self._going_R & ~ended_R
        self.left = int(self._going_R.sum())

    def forward(self) -> None:
        """Run the drawn tokens; rows that have ended leave before, once they are many."""
        if len(self._row_R) > 1 and len(self._row_R) - self.left >= _DROPPED * len(self._row_R):
            # One row stays for the forwards that other ranks need.
            kept = self._going_R.nonzero().squeeze(1) if self.left else self._row_R.new_zeros(1)
            self._select(kept)
            self._row_R, self._going_R, self._token_R = self._row_R[kept], self._going_R[kept], self._token_R[kept]
        if self._mask_RT is not None:
            self._mask_RT = torch.cat([self._mask_RT, self._mask_RT.new_ones(len(self._row_R), 1)], 1)
        self._run(self._token_R[:, None], self._position_R[:, None])
        self._position_R = self._position_R + 1

    def results(self) -> list[Decoded]:
        """What was drawn."""
        tokens, logps = self._tokens_RL.cpu().numpy(), self._logps_RL.cpu().numpy()
        lengths, ended = self._length_R.tolist(), self._ended_R.tolist()
        return [
            Decoded(tokens[row, : lengths[row]].copy(), logps[row, : lengths[row]].copy(), ended[row])
            for row in range(self.count)
        ]


def _any_left(left: int, together: bool, device: torch.device) -> bool:
    """Whether any row, of any rank that shares the model, goes on."""
    if not together:
        return left > 0
    most = torch.tensor(left, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return bool(most)


def _cache_name(lm: PreTrainedModel) -> str:
    """What a model calls its cache. ValueError if it has none of transformers' common kind."""
    taken = inspect.signature(lm.forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in taken:
            return name
    raise ValueError(
        f"{type(lm).__name__} has no cache that grmlight knows, so it cannot sample; choose another policy"
    )
