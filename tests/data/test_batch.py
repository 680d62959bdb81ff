"""Means over the comparisons of groups, of pairs and of groups with any number of comparisons."""

import numpy as np
import pytest
import torch

from grmlight.data.batch import GroupBatch
from tests.batches import pair_batch


def batch_of(groups, group_C):
    """A batch whose comparisons belong to these groups; nothing else in it matters."""
    plain = pair_batch(groups)
    arrays = {
        name: np.zeros(len(group_C), dtype=np.int64)
        for name in ("better_C", "worse_C", "row_C", "label_C", "margin_C", "weight_C")
    }
    arrays |= {name: getattr(plain, name).numpy() for name in ("input_ids_T", "positions_T", "last_N", "group_N")}
    arrays |= {name: getattr(plain, name).numpy() for name in ("source_L", "target_L", "response_L", "count_G")}
    arrays |= {name: np.zeros(0, dtype=np.int64) for name in ("bounds", "prefix", "responses")}
    return GroupBatch.from_arrays(arrays | {"group_C": np.array(group_C)}, groups_in_step=groups)


@pytest.mark.parametrize(
    ("groups", "group_C", "paired"),
    [
        (3, [0, 1, 2], True),
        (1, [0], True),
        (3, [0, 0, 2], False),
        (2, [0, 1, 1], False),
        (3, [0, 1], False),
        (4, [0, 2, 3], False),
    ],
)
def test_a_mean_by_group_is_that_of_its_comparisons(groups, group_C, paired):
    batch = batch_of(groups, group_C)
    assert batch.paired is paired
    values_C = torch.tensor([3.0, 5.0, 8.0][: len(group_C)], requires_grad=True)
    mean_G = batch.mean_by_group(values_C)
    for group in range(groups):
        mine = [value for value, of in zip(values_C.tolist(), group_C, strict=True) if of == group]
        assert mean_G[group].item() == (sum(mine) / len(mine) if mine else 0.0)
    (mean_G * torch.arange(1, groups + 1)).sum().backward()
    assert values_C.grad is not None
    expected = [(of + 1) / group_C.count(of) for of in group_C]
    assert values_C.grad.tolist() == pytest.approx(expected)
