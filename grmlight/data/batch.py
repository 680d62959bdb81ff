"""GroupBatch: one pack of groups, the only thing that travels from data to model.

Notable decisions:

- A group is a prompt with one or more responses that each see it. A pair is two responses and one comparison.
- There is no attention mask: `Layout` says where each segment lies and which prompt it also sees.
- The scored token is carried (`last_N`), never guessed from pad ids.
- Shape suffixes: T tokens in the pack, S segments, G groups, N responses, C comparisons, L scored response tokens,
  K some of them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping


def sum_dtype(device: torch.device) -> torch.dtype:
    """The widest dtype for sums on a device."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the segments of a pack lie, as plain numbers: they steer loops and never visit the device.

    Attributes:
        bounds: S + 1 token offsets; segment s is `bounds[s]:bounds[s + 1]`. Prompts may be empty, responses never are.
        prefix: for each segment the segment of the prompt that it also sees, or -1 for a prompt.
        responses: the N segments that are responses, in order.
        table_S3: the same as a tensor on the CPU: start, end and prefix of each segment. Models hand it down to their
            attention, and compilers need not look at its numbers. Made from the others where it is not given.
    """

    bounds: tuple[int, ...]
    prefix: tuple[int, ...]
    responses: tuple[int, ...]
    table_S3: Int[Tensor, "S 3"] = dataclasses.field(default=None, repr=False, compare=False)  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        if self.table_S3 is None:
            rows = list(zip(self.bounds, self.bounds[1:], self.prefix, strict=False))
            table_S3 = torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(-1, 3)
            object.__setattr__(self, "table_S3", table_S3)

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest response together with its prompt, or of a longer prompt."""
        lengths = [end - start for start, end in zip(self.bounds, self.bounds[1:], strict=False)]
        return max(
            length + (lengths[seen] if seen >= 0 else 0) for length, seen in zip(lengths, self.prefix, strict=True)
        )

    @classmethod
    def of(cls, table_S3: Int[Tensor, "S 3"]) -> Self:
        """The layout that a table says."""
        starts, ends, prefix = zip(*table_S3.tolist(), strict=True)
        responses = tuple(segment for segment, seen in enumerate(prefix) if seen >= 0)
        return cls((*starts, ends[-1]), prefix, responses)


_LAYOUT = frozenset({"bounds", "prefix", "responses", "table_S3"})


@dataclasses.dataclass(frozen=True)
class GroupBatch:
    """One pack of groups (see the module's legend for the shape suffixes).

    The shared prompt of a group is the longest common token prefix of its responses, so scored tokens may lie in it:
    `source_L` may then name the same position once for each response.

    Attributes:
        input_ids_T: token ids, segments laid end to end.
        positions_T: positions; each response goes on from its prompt's end.
        layout: segment bounds.
        last_N: pack index of each response's last token, where its reward is read.
        group_N: the group of each response.
        source_L: pack index of the hidden state that predicts a scored token.
        target_L: the scored token's id.
        response_L: the response it belongs to. Ascending.
        better_C: response index that is better.
        worse_C: response index that is worse.
        group_C: the group of each comparison. Ascending.
        label_C: probability that `better_C` is better: 1 for a sure label, 0.5 for a tie.
        margin_C: the annotated strength of the preference, 0 if there is none.
        weight_C: the comparison's weight in the objective.
        row_C: source row of the comparison.
        count_G: 1, or 0 for a group that is repeated only to fill an empty share.
        groups_in_step: groups of the whole optimizer step over all ranks and packs.
        step: optimizer step within the epoch, from 0.
        micro_batch: position of this pack within its step.
        packs: packs of the step on each rank.
        repeated: whether all its groups are repeated: `count_G` as the host knows it.
        paired: whether each group is one comparison, as the host knows it: means over groups then need no sums.
        reference_logps_N: the log-prob of each response's scored tokens under the start model, in nats, where it was
            computed before training (`grmlight.training.reference`).
        task_G: the task of each group, or -1 where it has none that is known; None where nobody asked
            (`grmlight.data.labels`).
        capability_G: likewise the capability within that task which its comparison was labeled for.
        chosen_L: which of the L scored tokens belong to better responses. Made while the batch is on the CPU: selecting
            by a mask would wait for the device.
    """

    input_ids_T: Int[Tensor, " T"]
    positions_T: Int[Tensor, " T"]
    layout: Layout
    last_N: Int[Tensor, " N"]
    group_N: Int[Tensor, " N"]
    source_L: Int[Tensor, " L"]
    target_L: Int[Tensor, " L"]
    response_L: Int[Tensor, " L"]
    better_C: Int[Tensor, " C"]
    worse_C: Int[Tensor, " C"]
    group_C: Int[Tensor, " C"]
    label_C: Float[Tensor, " C"]
    margin_C: Float[Tensor, " C"]
    weight_C: Float[Tensor, " C"]
    row_C: Int[Tensor, " C"]
    count_G: Float[Tensor, " G"]
    groups_in_step: int
    step: int = 0
    micro_batch: int = 0
    packs: int = 1
    repeated: bool = False
    paired: bool = False
    reference_logps_N: Float[Tensor, " N"] | None = None
    task_G: Int[Tensor, " G"] | None = None
    capability_G: Int[Tensor, " G"] | None = None
    chosen_L: Int[Tensor, " l"] = None  # pyright: ignore[reportAssignmentType] - made from the others

    def __post_init__(self) -> None:
        if self.chosen_L is None:
            better_N = torch.zeros_like(self.last_N, dtype=torch.bool).index_fill(0, self.better_C, True)
            object.__setattr__(self, "chosen_L", better_N[self.response_L].nonzero().squeeze(1))

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], groups_in_step: int, step: int = 0, micro_batch: int = 0, packs: int = 1
    ) -> Self:
        """Wrap the arrays that `grmlight._data_rs.Store.pack` returns, without copying the tokens."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if name not in _LAYOUT}
        layout = Layout(
            bounds=tuple(arrays["bounds"].tolist()),
            prefix=tuple(arrays["prefix"].tolist()),
            responses=tuple(arrays["responses"].tolist()),
            table_S3=torch.from_numpy(arrays["table_S3"]) if "table_S3" in arrays else None,  # pyright: ignore[reportArgumentType]
        )
        count_G, group_C = arrays["count_G"].tolist(), arrays["group_C"].tolist()
        return cls(
            **tensors,
            layout=layout,
            groups_in_step=groups_in_step,
            step=step,
            micro_batch=micro_batch,
            packs=packs,
            repeated=not any(count_G),
            paired=group_C == list(range(len(count_G))),
        )

    @property
    def groups(self) -> int:
        """Groups in this pack, repeated ones included."""
        return self.count_G.shape[0]

    @property
    def responses(self) -> int:
        """Responses in this pack."""
        return self.last_N.shape[0]

    def sum_by_response(self, values_L: Float[Tensor, " L"]) -> Float[Tensor, " N"]:
        """Sum a value of each scored token over the response it belongs to."""
        return self.sum_at(self.response_L, values_L)

    def sum_at(self, response_K: Int[Tensor, " K"], values_K: Float[Tensor, " K"]) -> Float[Tensor, " N"]:
        """Sum values over the response that each belongs to.

        A response has hundreds of nats; in float32 each further token would round by as much as the differences of two
        such sums may matter, so they are rounded once.
        """
        wide = sum_dtype(values_K.device)
        sums_N = values_K.new_zeros(self.responses, dtype=wide).index_add(0, response_K, values_K.to(wide))
        return sums_N.to(values_K.dtype)

    def scored_tokens_N(self) -> Int[Tensor, " N"]:
        """Scored tokens of each response."""
        # `bincount` would wait for the device.
        return torch.zeros_like(self.last_N).index_add(0, self.response_L, torch.ones_like(self.response_L))

    def mean_by_group(self, values_C: Float[Tensor, " C"]) -> Float[Tensor, " G"]:
        """Mean of a value of each comparison over the group's comparisons; a group without any gets 0."""
        if self.paired:
            return values_C
        zeros_G = values_C.new_zeros(self.groups)
        sums_G = zeros_G.index_add(0, self.group_C, values_C)
        return sums_G / zeros_G.index_add(0, self.group_C, torch.ones_like(values_C)).clamp(min=1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on another device. To a GPU it goes in one copy a dtype, for which the host does not wait."""
        if self.input_ids_T.device == torch.device(device):
            return self
        tensors = {
            field.name: value
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        if torch.device(device).type == "cuda" and self.input_ids_T.device.type == "cpu":
            moved = _copied_together(tensors, device)
        else:
            moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()}
        return dataclasses.replace(self, **moved)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on another device; the host does not wait for a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _copied_together(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Tensors of one axis on a GPU: laid end to end in pinned memory, copied, and cut again."""
    moved: dict[str, Tensor] = {}
    for dtype in {tensor.dtype for tensor in tensors.values()}:
        names = [name for name, tensor in tensors.items() if tensor.dtype == dtype]
        joined = torch.cat([tensors[name] for name in names]).pin_memory().to(device, non_blocking=True)
        moved |= zip(names, joined.split([len(tensors[name]) for name in names]), strict=True)
    return moved
