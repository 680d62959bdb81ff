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
    pack = _Pack()
    for group, sequences in enumerate(groups):
        shared = shared_prompt(sequences) if prompts is None else prompts[group]
        starts = [shared] * len(sequences) if scored_starts is None else scored_starts[group]
        first_response = len(pack.last)
        pack.add_group(group, sequences, shared, starts)
        pairs = ([(0, 1)] if len(sequences) > 1 else []) if comparisons is None else comparisons[group]
        for number, (good, bad) in enumerate(pairs):
            pack.better.append(first_response + good)
            pack.worse.append(first_response + bad)
            pack.group_of_comparison.append(group)
            pack.label.append(1.0 if labels is None else labels[group][number])
            pack.margin.append(0.0 if margins is None else margins[group][number])
            pack.weight.append(1.0 if weights is None else weights[group][number])
    counted = [1.0] * len(groups) if counts is None else counts
    return pack.batch(counted, len(groups) if groups_in_step is None else groups_in_step)


class _Pack:
    """The fields of a GroupBatch as lists, which grow by a group at a time."""

    def __init__(self) -> None:
        self.bounds: list[int] = [0]
        self.prefix: list[int] = []
        self.responses: list[int] = []
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.last: list[int] = []
        self.group_of: list[int] = []
        self.source: list[int] = []
        self.target: list[int] = []
        self.response_of: list[int] = []
        self.better: list[int] = []
        self.worse: list[int] = []
        self.group_of_comparison: list[int] = []
        self.label: list[float] = []
        self.margin: list[float] = []
        self.weight: list[float] = []

    def add_group(self, group: int, sequences: Sequence[Sequence[int]], shared: int, starts: Sequence[int]) -> None:
        """A segment of the first `shared` tokens, and one of what follows them in each sequence."""
        prompt_start, prompt_segment = len(self.ids), len(self.prefix)
        self.add_segment(sequences[0], range(shared), -1)
        for sequence, start in zip(sequences, starts, strict=True):
            own_start = len(self.ids)
            self.add_segment(sequence, range(shared, len(sequence)), prompt_segment)
            assert len(self.ids) > own_start, "a response has at least one token"
            where = [*range(prompt_start, prompt_start + shared), *range(own_start, len(self.ids))]
            for position in range(max(start, 1), len(sequence)):
                self.source.append(where[position - 1])
                self.target.append(sequence[position])
                self.response_of.append(len(self.last))
            self.responses.append(len(self.prefix) - 1)
            self.last.append(len(self.ids) - 1)
            self.group_of.append(group)

    def add_segment(self, sequence: Sequence[int], positions: range, prefix: int) -> None:
        """The tokens at some positions of a sequence."""
        for position in positions:
            self.ids.append(sequence[position])
            self.positions.append(position)
        self.bounds.append(len(self.ids))
        self.prefix.append(prefix)

    def batch(self, counts: Sequence[float], groups_in_step: int) -> GroupBatch:
        """As tensors."""
        return GroupBatch(
            input_ids_T=_integers(self.ids),
            positions_T=_integers(self.positions),
            layout=Layout(tuple(self.bounds), tuple(self.prefix), tuple(self.responses)),
            last_N=_integers(self.last),
            group_N=_integers(self.group_of),
            source_L=_integers(self.source),
            target_L=_integers(self.target),
            response_L=_integers(self.response_of),
            better_C=_integers(self.better),
            worse_C=_integers(self.worse),
            group_C=_integers(self.group_of_comparison),
            label_C=_floats(self.label),
            margin_C=_floats(self.margin),
            weight_C=_floats(self.weight),
            row_C=_integers([group + 1 for group in self.group_of_comparison]),
            count_G=_floats(counts),
            groups_in_step=groups_in_step,
        )


def _integers(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _floats(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float32)
