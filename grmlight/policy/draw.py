"""Drawing a token: truncation, and a random stream for each row.

Notable decisions:

- A row's n-th token is decided by one number, which is a pure function of (seed, prompt, sample, n): what a row says
  depends neither on the rows beside it nor on the batch it is in, and nobody's generator is touched.
- Truncation is transformers' order and meaning: temperature, then top-k, then top-p; ties at the k-th logit stay in.
- Shape suffixes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_BITS = 48
"""Of a drawn number: fewer than a float64 has, so that no product with a sum of probabilities rounds up to it."""


def uniforms(seed: int, prompt_R: np.ndarray, sample_R: np.ndarray, token: int) -> Float64[np.ndarray, " R"]:
    """A number in [0, 1) for each row's token, the same on every machine.

    Args:
        seed: of all rows.
        prompt_R: each row's prompt, by number.
        sample_R: which of the prompt's samples it is.
        token: which of its tokens.

    Source: the finalizer of SplitMix64 (Steele, Lea, Flood 2014), over the four numbers in turn.
    """
    state_R = np.full(len(prompt_R), seed % 2**64, np.uint64)
    for entry in (prompt_R, sample_R, token):
        state_R = _mixed(state_R) ^ np.asarray(entry).astype(np.uint64)
    return (_mixed(state_R) >> np.uint64(64 - _BITS)).astype(np.float64) / 2.0**_BITS


def _mixed(state_R: np.ndarray) -> np.ndarray:
    """Each 64-bit number's bits scattered, one to one; products wrap around."""
    mixed_R = state_R + _STEP
    mixed_R = (mixed_R ^ (mixed_R >> np.uint64(30))) * _FIRST
    mixed_R = (mixed_R ^ (mixed_R >> np.uint64(27))) * _SECOND
    return mixed_R ^ (mixed_R >> np.uint64(31))


def truncated(logits_RV: Float[Tensor, "R V"], temperature: float, top_p: float, top_k: int) -> Float[Tensor, "R V"]:
    """Unnormalized probabilities to draw from: 0 outside of what top_k and top_p leave.

    Source: top-p is Holtzman et al. 2020, the smallest set of most probable tokens whose probability reaches it.
    """
    logits_RV = logits_RV / temperature
    if 0 < top_k < logits_RV.shape[-1]:
        least_R1 = logits_RV.topk(top_k, -1).values[:, -1:]
        logits_RV = logits_RV.masked_fill(logits_RV < least_R1, -torch.inf)
    probabilities_RV = logits_RV.softmax(-1)
    if top_p < 1:
        sorted_RV, order_RV = probabilities_RV.sort(dim=-1, descending=True, stable=True)
        before_RV = sorted_RV.cumsum(-1) - sorted_RV
        dropped_RV = torch.zeros_like(before_RV, dtype=torch.bool).scatter(-1, order_RV, before_RV >= top_p)
        probabilities_RV = probabilities_RV.masked_fill(dropped_RV, 0)
    return probabilities_RV


def at_quantile(probabilities_RV: Float[Tensor, "R V"], quantile_R: Float64[Tensor, " R"]) -> Int[Tensor, " R"]:
    """The token at which each row's cumulated probability passes a share of the whole."""
    cumulated_RV = probabilities_RV.double().cumsum(-1)
    wanted_R1 = (quantile_R * cumulated_RV[:, -1])[:, None]
    found_R = torch.searchsorted(cumulated_RV, wanted_R1, right=True).squeeze(1)
    # Probabilities that are no numbers leave no place; the caller sees them in the log-probs.
    return found_R.clamp(max=probabilities_RV.shape[-1] - 1)


class Picker:
    """Draws the tokens of a batch's rows (`grmlight.models.decoding.Pick`).

    Args:
        temperature: 0 takes the most probable token.
        top_p: see `truncated`, as for `top_k`.
        seed: of all rows.
        rows: each row's prompt and sample, by number.
    """

    def __init__(
        self, temperature: float, top_p: float, top_k: int, seed: int, rows: Sequence[tuple[int, int]]
    ) -> None:
        self.temperature, self.top_p, self.top_k, self.seed = temperature, top_p, top_k, seed
        # A rank without rows of its own draws for one that nobody sees.
        self._prompt_R, self._sample_R = np.array(rows or [(0, 0)], np.int64).T

    def __call__(self, logits_RV: Tensor, row_R: Tensor, token: int) -> Tensor:
        """One token a row."""
        if self.temperature == 0:
            return logits_RV.argmax(-1)
        rows = row_R.cpu().numpy()
        drawn_R = uniforms(self.seed, self._prompt_R[rows], self._sample_R[rows], token)
        probabilities_RV = truncated(logits_RV, self.temperature, self.top_p, self.top_k)
        return at_quantile(probabilities_RV, torch.from_numpy(drawn_R).to(logits_RV.device))
