"""Runs that a SIGKILL ends at any moment, and go on: bit for bit on the same processes, to 1e-5 on others."""

import random
import time

import pytest

from grmlight.training.checkpoints import HIDDEN
from grmlight.training.resume import newest_checkpoint
from tests.test_training_runs import assert_same_losses, largest_difference, write_material
from tests.train_run import Run, losses, runs_alone, train

EXACT = ("--dropout", "0.2", "--log_every", "2")
"""Lines every 2 steps and checkpoints every 3: a checkpoint may fall between two lines."""
KINDS = {"one": ([], 1), "ddp": ([], 2), "fsdp2": (["--fsdp"], 2), "fsdp2-file": (["--fsdp", "--one_file"], 2)}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def material(tmp_path_factory, byte_tokenizer):
    return write_material(tmp_path_factory.mktemp("material"), byte_tokenizer)


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory):
    """Runs that nothing stopped, by their kind and further arguments."""
    run = runs_alone(tmp_path_factory, material)

    def of_kind(kind, *arguments):
        options, ranks = KINDS[kind]
        return run(*options, *arguments, ranks=ranks)

    return of_kind


def assert_goes_on(cut, kind, material, whole, *arguments):
    """Resume from the run directory; everything is then as if nothing had happened, and nothing lies about."""
    options, ranks = KINDS[kind]
    train(cut, *material, *options, *arguments, "--resume", newest_checkpoint(cut, training=True), ranks=ranks)
    assert losses(cut) == losses(whole(kind, *arguments))  # every bit of every term
    assert largest_difference(whole(kind, *arguments), cut) == 0.0
    assert not list((cut / "checkpoints").glob(f"{HIDDEN}*"))
    assert (cut / "checkpoints" / "last.ckpt").resolve() == newest_checkpoint(cut, training=True)


@pytest.mark.parametrize(
    ("kind", "moment", "step", "leftover"),
    [
        ("one", "write:3", 6, True),
        ("one", "written:5", 6, True),
        ("one", "published:3", 9, False),
        ("one", "linked:2", 9, False),
        ("ddp", "write:3", 6, True),
        pytest.param("ddp", "written:9", 12, True, marks=SLOW),
        pytest.param("ddp", "published:7", 21, False, marks=SLOW),
        pytest.param("ddp", "linked:1", 6, False, marks=SLOW),
        ("fsdp2", "shards:3", 6, True),
        ("fsdp2", "write:3", 6, True),
        pytest.param("fsdp2", "written:5", 6, True, marks=SLOW),
        pytest.param("fsdp2", "published:5", 15, False, marks=SLOW),
        ("fsdp2", "linked:2", 9, False),
        pytest.param("fsdp2-file", "write:3", 6, True, marks=SLOW),
    ],
)
def test_killed_within_a_save(kind, moment, step, leftover, material, whole, tmp_path):
    """Checkpoints come every 3 steps, 8 are an epoch. A save publishes twice, the checkpoint and the link."""
    options, ranks = KINDS[kind]
    train(tmp_path, *material, *options, *EXACT, "--kill_in", moment, ranks=ranks, expect=-9)
    assert any((tmp_path / "checkpoints").glob(f"{HIDDEN}*")) == leftover
    found = newest_checkpoint(tmp_path, training=True)
    assert found is not None
    assert f"step={step}." in found.name
    assert (tmp_path / "checkpoints" / "last.ckpt").resolve().exists()
    assert_goes_on(tmp_path, kind, material, whole, *EXACT)


@pytest.mark.parametrize(
    ("kind", "kill_at"), [("one", 11), ("one", 23), ("ddp", 17), pytest.param("fsdp2", 13, marks=SLOW)]
)
def test_killed_between_two_saves(kind, kill_at, material, whole, tmp_path):
    options, ranks = KINDS[kind]
    train(tmp_path, *material, *options, *EXACT, "--kill_at", kill_at, ranks=ranks, expect=-9)
    assert_goes_on(tmp_path, kind, material, whole, *EXACT)


def test_a_resumed_run_does_not_save_again_what_it_goes_on_from(material, tmp_path):
    """Nor, worse, what it holds after the first of the next step's packs."""
    train(tmp_path, *material, "--kill_at", 4, expect=-9)
    found = newest_checkpoint(tmp_path, training=True)
    before = found.stat()
    train(tmp_path, *material, "--resume", found, "--kill_at", 5, expect=-9)
    assert [path for path in (tmp_path / "checkpoints").iterdir() if not path.is_symlink()] == [found]
    assert (found.stat().st_ino, found.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("kind", ["one", "fsdp2", pytest.param("ddp", marks=SLOW)])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=SLOW) for seed in range(1, 6))])
def test_killed_from_outside_at_random_moments(kind, seed, material, whole, tmp_path):
    """All processes at once, twice: at moments drawn between the first checkpoint and the last step."""
    options, ranks = KINDS[kind]
    draw = random.Random(f"{kind} {seed}")
    for _ in range(2):
        resume = newest_checkpoint(tmp_path, training=True)
        again = ["--resume", str(resume)] if resume else []
        run = Run(tmp_path, *material, *options, *EXACT, "--slow", "0.02", *again, ranks=ranks)
        deadline = time.monotonic() + 60
        while saved(tmp_path) <= {resume} and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.6))
        run.kill()
    assert_goes_on(tmp_path, kind, material, whole, *EXACT)


def saved(out):
    return set((out / "checkpoints").glob("epoch*.ckpt"))


CHANGES = [
    [("fsdp2", 4), ("fsdp2", 2), ("fsdp2", 1)],
    [("one", 1), ("fsdp2", 2), ("one", 1)],
    [("fsdp2-file", 2), ("ddp", 2), ("fsdp2", 2)],
]


@pytest.mark.parametrize("lora", [[], pytest.param(["--lora"], marks=SLOW)], ids=["full", "lora"])
@pytest.mark.parametrize(
    "changes",
    [pytest.param(CHANGES[0], marks=SLOW), CHANGES[1], CHANGES[2]],
    ids=lambda changes: "-".join(f"{kind}{ranks}" for kind, ranks in changes),
)
def test_resumed_on_other_numbers_of_processes(changes, lora, material, whole, tmp_path):
    """Cut after 7 and 16 steps, from folders of shards to single files and back."""
    for (kind, ranks), kill_at in zip(changes, ("7", "16", "-1"), strict=True):
        resume = newest_checkpoint(tmp_path, training=True)
        again = ["--resume", str(resume)] if resume else []
        options = [*KINDS[kind][0], *lora, *again, "--kill_at", kill_at]
        train(tmp_path, *material, *options, ranks=ranks, expect=0 if kill_at == "-1" else -9)
    assert_same_losses(tmp_path, whole("one", *lora))
    assert largest_difference(whole("one", *lora), tmp_path) < 1e-4


def test_a_resumed_run_may_accumulate_otherwise(material, whole, tmp_path):
    train(tmp_path, *material, "--kill_at", "7", expect=-9)
    last = tmp_path / "checkpoints" / "last.ckpt"
    train(tmp_path, *material, "--accumulate", "3", "--resume", last)
    assert_same_losses(tmp_path, whole("one"))


def test_shards_on_a_full_disk_are_one_line_and_nothing_half_written_stays(material, tmp_path):
    run = Run(tmp_path, *map(str, material), "--fsdp", "--file_limit", "30000", ranks=2)
    run.wait(expect=1)
    assert (
        f"ValueError: {tmp_path}/checkpoints: a checkpoint cannot be written (a file was cut short, as on a full disk)"
        in run.output()
    )
    assert list((tmp_path / "checkpoints").iterdir()) == []
