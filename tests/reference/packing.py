"""The slow packer, obviously right: from lists of token sequences to a GroupBatch, with loops over tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grmlight.data.batch import GroupBatch, Layout


def shared_prompt(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix, capped one short of the shortest sequence."""
    limit = min(len(sequence) for sequence in sequences) - 1
    length = 0
    while length < limit and len({sequence[length] for sequence in sequences}) == 1:
        length += 1
    return length


def pack_groups(
    groups: Sequence[Sequence[Sequence[int]]],
    scored_starts: Sequence[Sequence[int]] | None = None,
    comparisons: Sequence[Sequence[tuple[int, int]]] | None = None,
    labels: Sequence[Sequence[float]] | None = None,
    margins: Sequence[Sequence[float]] | None = None,
    weights: Sequence[Sequence[float]] | None = None,
    counts: Sequence[float] | None = None,
    groups_in_step: int | None = None,
    prompts: Sequence[int] | None = None,
) -> GroupBatch:
    """Pack groups of whole token sequences (prompt and response together).

    Args:
        groups: for each group its sequences.
        scored_starts: for each sequence the position of its first scored token (default: the shared prompt's end).
            Position 0 has no predecessor, so it is never scored.
        comparisons: for each group its (better, worse) sequences (default: the first is better than the second, and
            no comparison in a group of one).
        labels, margins, weights: for each comparison (default 1, 0, 1).
        counts: for each group (default 1).
        groups_in_step: default: the groups in this pack.
        prompts: for each group the length to share, in place of the longest.
    """
    bounds, prefix, responses = [0], [], []
    ids, positions, last, group_of, source, target, response_of = [], [], [], [], [], [], []
    better, worse, group_of_comparison, label, margin, weight = [], [], [], [], [], []
    for group, sequences in enumerate(groups):
        shared = shared_prompt(sequences) if prompts is None else prompts[group]
        prompt_start, prompt_segment, first_response = len(ids), len(prefix), len(last)
        for position in range(shared):
            ids.append(sequences[0][position])
            positions.append(position)
        bounds.append(len(ids))
        prefix.append(-1)
        for number, sequence in enumerate(sequences):
            own_start = len(ids)
            where = [prompt_start + position for position in range(shared)]
            for position in range(shared, len(sequence)):
                where.append(len(ids))
                ids.append(sequence[position])
                positions.append(position)
            assert len(ids) > own_start, "a response has at least one token"
            bounds.append(len(ids))
            prefix.append(prompt_segment)
            responses.append(len(prefix) - 1)
            last.append(len(ids) - 1)
            group_of.append(group)
            start = shared if scored_starts is None else scored_starts[group][number]
            for position in range(max(start, 1), len(sequence)):
                source.append(where[position - 1])
                target.append(sequence[position])
                response_of.append(first_response + number)
        pairs = ([(0, 1)] if len(sequences) > 1 else []) if comparisons is None else comparisons[group]
        for number, (good, bad) in enumerate(pairs):
            better.append(first_response + good)
            worse.append(first_response + bad)
            group_of_comparison.append(group)
            label.append(1.0 if labels is None else labels[group][number])
            margin.append(0.0 if margins is None else margins[group][number])
            weight.append(1.0 if weights is None else weights[group][number])

    def integers(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64)

    def floats(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float32)

    return GroupBatch(
        input_ids_T=integers(ids),
        positions_T=integers(positions),
        layout=Layout(tuple(bounds), tuple(prefix), tuple(responses)),
        last_N=integers(last),
        group_N=integers(group_of),
        source_L=integers(source),
        target_L=integers(target),
        response_L=integers(response_of),
        better_C=integers(better),
        worse_C=integers(worse),
        group_C=integers(group_of_comparison),
        label_C=floats(label),
        margin_C=floats(margin),
        weight_C=floats(weight),
        row_C=integers([group + 1 for group in group_of_comparison]),
        count_G=floats([1.0] * len(groups) if counts is None else counts),
        groups_in_step=len(groups) if groups_in_step is None else groups_in_step,
    )
