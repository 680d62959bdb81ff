"""Members' gradients under FSDP2, two processes over gloo, against those of each member trained alone in one."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh

from grmlight.models import gather, shard
from tests.ensembles import KINDS, differing, tiny_ensemble
from tests.models.groups import mixed_groups
from tests.models.test_ensemble import SIGNALS, check_gradients, member_loss
from tests.ranks import RANKS, on_ranks
from tests.reference.packing import pack_groups


def _groups():
    """Four groups with comparisons, two for each rank."""
    groups = mixed_groups()
    return [groups[0], groups[2], groups[3], groups[2][::-1]]


def _write_gradients(rank, folder, members, recompute):
    model = tiny_ensemble(members, gradient_checkpointing=recompute)
    model.recenter([pack_groups(_groups())])
    shard(model, init_device_mesh("cpu", (RANKS,)))
    batch = pack_groups(_groups()[2 * rank : 2 * rank + 2])
    outputs = model(batch, SIGNALS)
    loss = torch.stack([member_loss(member, batch) for member in outputs.members]).mean()
    (RANKS * loss).backward()  # FSDP2 takes the mean over ranks
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}
    whole = gather(model)
    if rank == 0:
        assert differing(whole, tiny_with_statistics(members)) == 0
        save_file(gradients, folder / "gradients.safetensors")


def tiny_with_statistics(members):
    model = tiny_ensemble(members)
    model.recenter([pack_groups(_groups())])
    return model


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("members", KINDS)
def test_each_members_gradients_are_those_of_the_member_trained_alone(members, recompute, tmp_path):
    on_ranks(_write_gradients, tmp_path, members, recompute)
    found = load_file(tmp_path / "gradients.safetensors")
    check_gradients(found, tiny_ensemble(members), pack_groups(_groups()))
