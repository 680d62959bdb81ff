"""Packs made of other packs: the better responses alone, or two packs as one. On the CPU, where layouts are plain.

Shape suffixes as in `grmlight.data.batch`.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch

from grmlight.data.batch import GroupBatch, Layout


def better_alone(batch: GroupBatch) -> GroupBatch:
    """The pack without the responses that no comparison finds better.

    Each comparison stays, with its row and weight, as a tie of its better response with itself.
    """
    kept_N = torch.zeros_like(batch.last_N, dtype=torch.bool).index_fill(0, batch.better_C, True)
    layout = batch.layout
    dropped = {segment for segment, kept in zip(layout.responses, kept_N.tolist(), strict=True) if not kept}
    segments = [segment for segment in range(len(layout.prefix)) if segment not in dropped]
    place = {segment: index for index, segment in enumerate(segments)}
    place[-1] = -1
    spans = list(itertools.pairwise(layout.bounds))
    tokens_T = torch.cat([torch.arange(*spans[segment]) for segment in segments])
    token_place_T = torch.zeros_like(batch.input_ids_T).index_put((tokens_T,), torch.arange(len(tokens_T)))
    response_place_N = kept_N.long().cumsum(0) - 1
    kept_L = kept_N[batch.response_L]
    better_C = response_place_N[batch.better_C]
    reference_N = batch.reference_logps_N
    return dataclasses.replace(
        batch,
        input_ids_T=batch.input_ids_T[tokens_T],
        positions_T=batch.positions_T[tokens_T],
        layout=Layout(
            bounds=(0, *itertools.accumulate(spans[segment][1] - spans[segment][0] for segment in segments)),
            prefix=tuple(place[layout.prefix[segment]] for segment in segments),
            responses=tuple(place[segment] for segment in layout.responses if segment not in dropped),
        ),
        last_N=token_place_T[batch.last_N[kept_N]],
        group_N=batch.group_N[kept_N],
        source_L=token_place_T[batch.source_L[kept_L]],
        target_L=batch.target_L[kept_L],
        response_L=response_place_N[batch.response_L[kept_L]],
        better_C=better_C,
        worse_C=better_C,
        label_C=torch.full_like(batch.label_C, 0.5),
        margin_C=torch.zeros_like(batch.margin_C),
        reference_logps_N=None if reference_N is None else reference_N[kept_N],
        chosen_L=torch.arange(int(kept_L.sum())),
    )


def followed_by(batch: GroupBatch, more: GroupBatch) -> GroupBatch:
    """One pack with the groups of both; those of `more` count 0 and have no comparisons, and no reference log-probs."""
    tokens, segments = len(batch.input_ids_T), len(batch.layout.prefix)
    responses, groups = batch.responses, batch.groups
    reference_N = batch.reference_logps_N
    if reference_N is not None:
        reference_N = torch.cat([reference_N, reference_N.new_zeros(more.responses)])
    return dataclasses.replace(
        batch,
        input_ids_T=torch.cat([batch.input_ids_T, more.input_ids_T]),
        positions_T=torch.cat([batch.positions_T, more.positions_T]),
        layout=Layout(
            bounds=(*batch.layout.bounds, *(tokens + bound for bound in more.layout.bounds[1:])),
            prefix=(*batch.layout.prefix, *(segments + seen if seen >= 0 else -1 for seen in more.layout.prefix)),
            responses=(*batch.layout.responses, *(segments + segment for segment in more.layout.responses)),
        ),
        last_N=torch.cat([batch.last_N, tokens + more.last_N]),
        group_N=torch.cat([batch.group_N, groups + more.group_N]),
        source_L=torch.cat([batch.source_L, tokens + more.source_L]),
        target_L=torch.cat([batch.target_L, more.target_L]),
        response_L=torch.cat([batch.response_L, responses + more.response_L]),
        count_G=torch.cat([batch.count_G, torch.zeros_like(more.count_G)]),
        paired=False,
        reference_logps_N=reference_N,
    )
