"""The data engine's benchmarks compare equals: every part runs, at sizes that take little time."""

import numpy as np
import pytest
from datasets import disable_progress_bars

from benchmarks.data import composition, engines, jobs, material, ours_job, pipeline, resources, stages
from grmlight.data import GroupLoader, prepare

pytestmark = pytest.mark.filterwarnings("ignore")

TEXT = 400_000


@pytest.fixture(autouse=True)
def small(tmp_path_factory, monkeypatch):
    """Little text, a small vocabulary, and a folder of this session's own."""
    kept = tmp_path_factory.getbasetemp() / "benchmarks"
    monkeypatch.setenv("GRMLIGHT_CACHE", str(kept))
    made, written = material.tokenizer, material.pairs
    monkeypatch.setattr(material, "tokenizer", lambda: made(600, TEXT))
    monkeypatch.setattr(material, "pairs", lambda count: written(count, TEXT))
    disable_progress_bars()


@pytest.fixture
def installed(monkeypatch):
    """The composition on the engine that is installed."""
    made = {"GRMLIGHT_BENCH_ENGINE": "installed"}
    monkeypatch.setattr(pipeline, "composition", lambda _: jobs.Worker("composition", variables=made))


def test_the_material_is_the_same_every_time(tmp_path):
    source = material.pairs(60)
    before = source.read_bytes()
    source.unlink()
    assert material.pairs(60).read_bytes() == before
    assert before.startswith(material.head(source, 7, tmp_path / "head.jsonl").read_bytes())
    assert len(material.part(source, 50, 20, tmp_path / "part.jsonl").read_bytes().splitlines()) == 10


def test_the_composition_gives_our_batches(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_BENCH_ENGINE", "installed")
    tokenizer, source = material.tokenizer(), material.pairs(60)
    store = prepare(str(source), tokenizer, material.OPTIONS, tmp_path / "store").store
    composition.prepare(str(source), composition.encoder(f"{tokenizer}/tokenizer.json"), tmp_path)
    theirs = composition.Arrays(tmp_path)
    assert 0 < len(theirs) == len(store)
    for number, batch in enumerate(GroupLoader(store, 8)):
        found = theirs.batch(np.arange(8 * number, min(8 * number + 8, len(theirs))))
        assert found.pop("bounds").tolist() == list(batch.layout.bounds)
        del found["numbers_C"]
        for name, tensor in found.items():
            assert tensor.dtype == getattr(batch, name).dtype, name
            assert tensor.tolist() == getattr(batch, name).tolist(), name
    assert theirs.responses() == [each for batch in GroupLoader(store, 8) for each in ours_job.responses(batch)]


@pytest.mark.slow
def test_pipelines(tmp_path, installed):
    rows = pipeline.pipeline_rows(tmp_path, 40, 20, 2)
    rows += pipeline.composition_rows(tmp_path, ("the engine",), 40, 1)
    assert [(row.floor, row.target) for row in rows if row.floor] == [(60, 80), (1.25, 1.5)]


def test_other_ids_are_noticed(tmp_path):
    one, other, longer = (str(tmp_path / name) for name in ("1.npz", "2.npz", "3.npz"))
    jobs.save_ids(one, [[1, 2], [3]])
    jobs.save_ids(other, [[1], [2, 3]])
    jobs.save_ids(longer, [[1, 2], [3], [4]])
    done = [jobs.Done(1.0, 1.0, 1, path) for path in (one, other, longer)]
    assert jobs.same_ids(done[0], done[0])
    assert not jobs.same_ids(done[0], done[1])
    assert not jobs.same_ids(done[0], done[2])


def test_an_engine_that_cannot_be_had_is_not_measured(monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(engines.ENGINES, "none", "no-such-engine==0")
    assert engines.composition("none") is None
    assert "not measured" in capsys.readouterr().out


@pytest.mark.slow
def test_stages(tmp_path):
    rows = stages.encode_rows(tmp_path, 40, 20)
    rows += stages.order_rows(tmp_path, 2_000, rounds=1)
    rows += stages.slot_rows(tmp_path / "slots", 80)
    rows += stages.fetch_rows(tmp_path / "fetch", 20, 2)
    assert [row.target for row in rows if row.floor] == [1.25, 50, 2.8, 4, 0.997, 50]
    assert all(row.value > 0 for row in rows)


@pytest.mark.slow
def test_resources(tmp_path):
    (ratio, cost) = resources.thread_rows(tmp_path, 40, 1)
    assert ratio.floor == 1.7
    assert cost.value > 0
    assert [row.unit for row in resources.memory_rows(tmp_path, (20, 40))] == ["MiB", "MiB", "bytes"]
