"""Packs made in worker processes, forked and spawned, are those made here."""

import json

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from grmlight.data import GroupLoader, PrepareOptions, prepare


class Packs(Dataset):
    """The packs of a loader, by their deals."""

    def __init__(self, loader):
        self.loader = loader
        self.deals = list(loader.deals())

    def __len__(self):
        return len(self.deals)

    def __getitem__(self, index):
        return self.loader.batch(self.deals[index])


@pytest.mark.parametrize("context", ["fork", "spawn"])
# Torch's own threads are why Python warns of forks here; the workers use none of them.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_give_the_packs_of_this_process(context, tmp_path, byte_tokenizer, monkeypatch):
    rows = [{"prompt": f"why {i}", "chosen": "so " * (1 + i * 7 % 19), "rejected": f"not {i}"} for i in range(30)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A store that was named by a relative path is found by a worker, wherever that runs.
    monkeypatch.chdir(tmp_path)
    found = prepare("pairs.jsonl", str(byte_tokenizer), PrepareOptions(), tmp_path / "store")
    packs = Packs(GroupLoader(found.store, 8, seed=0))
    expected = [packs[index] for index in range(len(packs))]
    workers = DataLoader(packs, batch_size=None, num_workers=2, multiprocessing_context=context)
    assert len(expected) == 4
    for batch, alone in zip(workers, expected, strict=True):
        assert (batch.layout, batch.groups_in_step, batch.step) == (alone.layout, alone.groups_in_step, alone.step)
        assert torch.equal(batch.layout.table_S3, alone.layout.table_S3)
        for name, value in vars(alone).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(batch, name), value), name
