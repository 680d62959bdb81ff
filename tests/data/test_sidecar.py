"""Numbers kept beside a store: where they lie, what they belong to, and what is never taken for them."""

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from grmlight.data import GroupLoader, PrepareOptions, prepare
from grmlight.data.sidecar import ResponseValues, Sidecar, first_responses, responses_of

GROUPS = 9
ENTRIES = {"weights": "a", "precision": "32-true"}


@pytest.fixture
def prepared(tmp_path, byte_tokenizer):
    return make(tmp_path, byte_tokenizer, "one")


def make(folder, tokenizer, name):
    rows = [
        {"prompt": f"why {name} {i}", "chosen": "so " * (1 + i * 7 % 5), "rejected": f"not {i}"} for i in range(GROUPS)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare(str(folder / f"{name}.jsonl"), str(tokenizer), PrepareOptions(), folder / name)


def sidecar(prepared, **entries):
    return Sidecar(prepared.directory, prepared.store, "numbers", ENTRIES | entries)


def values():
    return np.arange(2 * GROUPS, dtype=np.float32) - 3.5


def test_what_is_written_is_read(prepared):
    assert sidecar(prepared).read() is None
    written = sidecar(prepared).write(values())
    read = sidecar(prepared).read()
    for found in (written, read):
        assert np.array_equal(found.values_N, values())
        assert found.values_N.dtype == np.float32
    assert read.first_G.tolist() == list(range(0, 2 * GROUPS + 1, 2))
    assert [path.name for path in prepared.directory.glob("*numbers*")] == [sidecar(prepared).path.name]


def test_responses_of_groups_of_any_size():
    """Against a loop; groups may come twice and in any order."""
    sizes = [2, 1, 4, 3, 2]
    first_G = np.concatenate([[0], np.cumsum(sizes)])
    of_group = [list(range(first_G[group], first_G[group + 1])) for group in range(len(sizes))]
    for groups in ([0], [4, 2], [1, 1, 3], [2, 0, 4, 3, 1], []):
        expected = [response for group in groups for response in of_group[group]]
        found = responses_of(first_G, np.array(groups, dtype=np.int64))
        assert found.tolist() == expected
        assert ResponseValues(np.arange(12) * 10, first_G).of(np.array(groups, dtype=np.int64)).tolist() == [
            10 * response for response in expected
        ]


def test_the_store_says_where_groups_begin(prepared):
    (whole,) = GroupLoader(prepared.store, GROUPS)
    first_G = first_responses(prepared.directory)
    assert first_G[-1] == whole.responses
    assert np.bincount(whole.group_N.numpy()).tolist() == np.diff(first_G).tolist()


@pytest.mark.parametrize(("ranks", "packs"), [(1, 1), (2, 3), (8, 2)])
def test_packs_carry_the_numbers_of_their_responses(prepared, ranks, packs):
    """Each response is known by its tokens; repeated groups of empty shares carry theirs too."""
    (whole,) = GroupLoader(prepared.store, GROUPS)
    of_tokens = dict(zip(map(bytes, tokens(whole)), values().tolist(), strict=True))
    assert len(of_tokens) == 2 * GROUPS
    kept = ResponseValues(values(), first_responses(prepared.directory))
    repeated = 0
    for rank in range(ranks):
        for batch in GroupLoader(prepared.store, 4, rank, ranks, packs, seed=3, reference_logps=kept):
            assert batch.reference_logps_N.tolist() == [of_tokens[bytes(each)] for each in tokens(batch)]
            repeated += int((batch.count_G == 0).sum())
    assert (repeated > 0) == (ranks * packs > 1)


def tokens(batch):
    """The tokens of each response with its prompt, as bytes."""
    bounds, prefix = batch.layout.bounds, batch.layout.prefix
    ids = batch.input_ids_T.numpy()

    def segment(index):
        return ids[bounds[index] : bounds[index + 1]].tolist()

    return [np.array(segment(prefix[each]) + segment(each)) for each in batch.layout.responses]


def test_a_batch_carries_them_to_another_device(prepared):
    kept = ResponseValues(values(), first_responses(prepared.directory))
    (batch,) = GroupLoader(prepared.store, GROUPS, reference_logps=kept)
    assert batch.to("meta").reference_logps_N.device.type == "meta"
    assert next(iter(GroupLoader(prepared.store, GROUPS))).to("meta").reference_logps_N is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_arrives_whole_on_a_gpu(prepared):
    kept = ResponseValues(values(), first_responses(prepared.directory))
    (batch,) = GroupLoader(prepared.store, GROUPS, reference_logps=kept)
    back = batch.to("cuda").to("cpu")
    for field in dataclasses.fields(batch):
        before, after = getattr(batch, field.name), getattr(back, field.name)
        assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after


@pytest.mark.parametrize("entry", ["weights", "precision"])
def test_other_weights_or_precision_make_another_file(entry, prepared):
    sidecar(prepared).write(values())
    other = sidecar(prepared, **{entry: "other"})
    assert other.read() is None
    assert other.path != sidecar(prepared).path


def test_another_store_makes_another_file(prepared, tmp_path, byte_tokenizer):
    """Even where the numbers of one were put into the other's folder, or under its name."""
    other = make(tmp_path, byte_tokenizer, "two")
    written = sidecar(prepared)
    written.write(values())
    foreign = sidecar(other)
    assert foreign.path.name != written.path.name
    shutil.copy(written.path, other.directory)
    assert foreign.read() is None
    shutil.copy(written.path, foreign.path)
    with pytest.raises(ValueError, match="was computed for other data, weights or precision"):
        foreign.read()


def test_a_copied_store_brings_its_numbers_along(prepared, tmp_path, byte_tokenizer):
    sidecar(prepared).write(values())
    shutil.copytree(prepared.directory, tmp_path / "copy")
    copied = prepare(prepared.source, str(byte_tokenizer), PrepareOptions(), tmp_path / "copy")
    assert np.array_equal(sidecar(copied).read().values_N, values())


def test_what_is_wrong_with_a_file_is_said(prepared):
    kept = sidecar(prepared)
    kept.write(values())
    content = kept.path.read_bytes()
    with safe_open(kept.path, framework="numpy") as file:
        entries = file.metadata()

    def problem():
        with pytest.raises(ValueError, match=kept.path.name) as caught:
            kept.read()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for cut in (0, 5, 100, len(content) - 1):
        kept.path.write_bytes(content[:cut])
        assert "cannot be read" in problem()
    kept.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "checksum" in problem()
    save_file({"values": values()[:-2]}, kept.path, entries)
    assert f"holds {2 * GROUPS - 2} values, the store has {2 * GROUPS} responses" in problem()
    save_file({"values": values().astype(np.float64)}, kept.path, entries)
    problem()
    save_file({"values": values()}, kept.path)
    assert "other data" in problem()
    kept.path.write_bytes(content)
    assert kept.read() is not None


def test_a_folder_that_cannot_be_written_is_found_out_before(prepared):
    # Below the test's own folder, which is closed to others.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        closed = Path(shutil.copytree(prepared.directory, Path(folder) / "store"))
        kept = Sidecar(closed, prepared.store, "numbers", ENTRIES)
        kept.check_writable()
        closed.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                kept.check_writable()
        finally:
            os.seteuid(user)
        assert not list(closed.glob(".grmlight-tmp-*"))
        closed.chmod(0o755)
