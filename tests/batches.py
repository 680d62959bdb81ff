"""Hand-made batches and outputs for tests of everything that is arithmetic on them."""

import torch

from grmlight.data.batch import GroupBatch, Layout
from grmlight.models.outputs import Outputs


def pair_batch(
    pairs: int,
    *,
    weights: list[float] | None = None,
    margins: list[float] | None = None,
    labels: list[float] | None = None,
    counts: list[float] | None = None,
    scored: list[int] | None = None,
    groups_in_step: int | None = None,
    micro_batch: int = 0,
) -> GroupBatch:
    """A batch of pairs whose tokens do not matter; `scored` gives the scored tokens of each response."""
    scored = scored or [1] * (2 * pairs)
    responses = torch.arange(2 * pairs)
    response_L = torch.repeat_interleave(responses, torch.tensor(scored))
    return GroupBatch(
        input_ids_T=torch.zeros(3 * pairs, dtype=torch.long),
        positions_T=torch.zeros(3 * pairs, dtype=torch.long),
        layout=Layout((), (), ()),
        last_N=responses,
        group_N=responses // 2,
        source_L=torch.zeros_like(response_L),
        target_L=torch.zeros_like(response_L),
        response_L=response_L,
        better_C=torch.arange(pairs) * 2,
        worse_C=torch.arange(pairs) * 2 + 1,
        group_C=torch.arange(pairs),
        label_C=torch.tensor(labels or [1.0] * pairs),
        margin_C=torch.tensor(margins or [0.0] * pairs),
        weight_C=torch.tensor(weights or [1.0] * pairs),
        row_C=torch.arange(pairs) + 1,
        count_G=torch.tensor(counts or [1.0] * pairs),
        groups_in_step=pairs if groups_in_step is None else groups_in_step,
        micro_batch=micro_batch,
    )


def outputs_of(rewards: list[float], logps: list[float] | None = None, reference: list[float] | None = None) -> Outputs:
    """Outputs with given numbers, in float64."""

    def leaf(values: list[float] | None) -> torch.Tensor | None:
        return None if values is None else torch.tensor(values, dtype=torch.float64)

    rewards_N = leaf(rewards)
    assert rewards_N is not None
    return Outputs(rewards_N, leaf(logps), leaf(reference))
