"""The bag-of-words ruler: how far single words alone would go."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from grmlight._data_rs import Store
from grmlight.data.batch import GroupBatch

MAX_TRAINING_PAIRS = 20_000
_CHUNK = 512


def bag_of_words_accuracy(train: Store, evaluation: Store, l2: float = 1e-3) -> float:
    """Accuracy of logistic regression on which tokens the two responses hold, equal scores counting one half.

    Args:
        train: pairs to learn from; the first 20,000 of them.
        evaluation: pairs to judge.
        l2: penalty on the squared weights.
    """
    weights_V = _fit(_differences(train, min(len(train), MAX_TRAINING_PAIRS)), l2)
    scores_C = _scores(_differences(evaluation, len(evaluation)), weights_V)
    return float(((scores_C.sign() + 1) / 2).mean())


def _differences(store: Store, groups: int) -> Tensor:
    """A sparse matrix [C, V]: for each comparison the tokens that only the better (+1) or only the worse (-1) holds.

    Suffix K: the tokens of one side of each comparison, end to end.
    """
    places, values, rows = [], [], 0
    for start in range(0, groups, _CHUNK):
        chosen = np.arange(start, min(start + _CHUNK, groups))
        batch = GroupBatch.from_arrays(store.pack(chosen, np.ones(len(chosen), np.float32)), len(chosen))
        first = batch.label_C > 0.5
        sure = batch.label_C != 0.5
        better_C = torch.where(first, batch.better_C, batch.worse_C)[sure]
        worse_C = torch.where(first, batch.worse_C, batch.better_C)[sure]
        tokens_N = batch.scored_tokens_N()
        for sign, response_C in ((1.0, better_C), (-1.0, worse_C)):
            tokens_C = tokens_N[response_C]
            comparison_K = torch.arange(len(response_C)).repeat_interleave(tokens_C)
            first_C = tokens_N.cumsum(0)[response_C] - tokens_C.cumsum(0)
            place_K = torch.arange(len(comparison_K)) + first_C[comparison_K]
            held = torch.stack([comparison_K + rows, batch.target_L[place_K]]).unique(dim=1)
            places.append(held)
            values.append(torch.full((held.shape[1],), sign))
        rows += len(better_C)
    return torch.sparse_coo_tensor(torch.cat(places, dim=1), torch.cat(values), check_invariants=True).coalesce()


def _scores(differences_CV: Tensor, weights_V: Float[Tensor, " V"]) -> Float[Tensor, " C"]:
    known = differences_CV.shape[1] - len(weights_V)
    padded_V = F.pad(weights_V, (0, known)) if known > 0 else weights_V[: differences_CV.shape[1]]
    return torch.sparse.mm(differences_CV, padded_V[:, None]).squeeze(1)


def _fit(differences_CV: Tensor, l2: float) -> Float[Tensor, " V"]:
    weights_V = torch.zeros(differences_CV.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_V], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.softplus(-_scores(differences_CV, weights_V)).mean() + l2 * weights_V.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportArgumentType] - it takes tensors too
    return weights_V.detach()
