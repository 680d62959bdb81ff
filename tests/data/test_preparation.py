"""Preparations that are interrupted, run side by side, or watched: real processes and signals."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from grmlight._data_rs import Store
from tests.data import oracle_store
from tests.data.rows import agree, as_callback, begin, byte_level, lines, render_all, write_store

ROWS = [
    {"prompt": f"why is {n % 90} the {n}?", "chosen": f"so it is {n % 90}", "rejected": f"not so {n % 70}", "id": n}
    for n in range(600)
]
# Duplicates, contradictions, refusals and unusable rows in every window: what a resumed reading must remember.
ROWS += [ROWS[7] | {"id": "again"}, ROWS[8] | {"chosen": "x", "rejected": "x"}]
ROWS += [
    {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]} if n % 3 else row
    for n, row in enumerate(ROWS[:200])
]
ROWS += [{"prompt": [{"role": "user", "content": "refuse this"}], "chosen": "a", "rejected": f"b{n}"} for n in range(9)]
OPTIONS = {"on_duplicate": "drop", "flip": 0.3, "stride": 2, "offset": 5, "limit": 300, "max_length": 60}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level(["why is the cat so it is not so"] * 5, 300)


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "store"
    write_store(folder, lines(*ROWS), tokenizer, 10_000, **OPTIONS)
    return content(folder)


def test_the_undisturbed_store_is_the_oracles(undisturbed, tokenizer):
    reading_options = {name: OPTIONS[name] for name in ("on_duplicate", "flip", "stride")}
    pairs, reading = agree(lines(*ROWS), **reading_options)
    reading.skipped += len(reading.pairs)
    reading.pairs = reading.pairs[5:305]
    reading.skipped -= len(reading.pairs)
    texts, boundaries = (values[5:305] for values in render_all(pairs))
    written = oracle_store.write(reading, tokenizer, texts, boundaries, max_length=60)
    assert json.loads(undisturbed["manifest.json"])["report"] == written.report
    assert written.report["refused"].keys() >= {"duplicate", "identical"}
    assert written.report["noted"]["contradiction"]
    for name, expected in written.files().items():
        assert undisturbed[name] == expected, name


@pytest.mark.parametrize("window", [1, 7, 100, 811])
@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_store_is_the_same_wherever_it_was_interrupted(undisturbed, tokenizer, tmp_path, window, end):
    """In every window once, with another size of windows each time."""
    rows, stops = 0, 0
    sizes = random.Random(window)
    while True:
        preparation = begin(tmp_path / "store", lines(*ROWS), tokenizer, window, **OPTIONS)
        assert preparation.resumed == (stops > 0)
        assert preparation.progress[0] == rows
        for _ in range(sizes.randint(1, 100)):
            if not preparation.advance(as_callback):
                preparation.finish({"identity": "test"})
                assert content(tmp_path / "store") == undisturbed
                assert [path.name for path in tmp_path.iterdir()] == ["store"]
                return
        rows, stops, window = preparation.progress[0], stops + 1, sizes.randint(1, 100)
        if end == "close":
            preparation.close()
        del preparation
        assert not (tmp_path / "store").exists()
        assert [path.name for path in tmp_path.iterdir()] == [".store.partial-test"]


def test_an_error_in_a_window_costs_that_window_alone(undisturbed, tokenizer, tmp_path):
    def failing(prompt, responses):
        raise KeyboardInterrupt

    for ended in (False, True):
        preparation = begin(tmp_path / "store", lines(*ROWS), tokenizer, 200, **OPTIONS)
        assert preparation.progress[0] == 200 * ended
        assert preparation.advance(as_callback)
        if not ended:
            with pytest.raises(KeyboardInterrupt):
                preparation.advance(failing)
            preparation.close()
    go_on(preparation)
    preparation.finish({"identity": "test"})
    assert content(tmp_path / "store") == undisturbed


@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
@pytest.mark.parametrize("name", ["tokens.bin", "rows.jsonl", "entered", "journal"])
def test_a_damaged_part_is_not_built_upon(undisturbed, tokenizer, tmp_path, name, damage):
    preparation = begin(tmp_path / "store", lines(*ROWS), tokenizer, 200, **OPTIONS)
    preparation.advance(as_callback)
    preparation.advance(as_callback)
    preparation.close()
    path = tmp_path / ".store.partial-test" / name
    found = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        found[3] ^= 1
        path.write_bytes(found if damage == "flip" else found[:-1])
    report = write_store(tmp_path / "store", lines(*ROWS), tokenizer, 200, **OPTIONS)
    assert content(tmp_path / "store") == undisturbed
    assert report == json.loads(undisturbed["manifest.json"])["report"]


def test_a_torn_manifest_is_written_again(undisturbed, tokenizer, tmp_path):
    """A builder that dies between the manifest and the end of the journal."""
    preparation = begin(tmp_path / "store", lines(*ROWS), tokenizer, 200, **OPTIONS)
    preparation.advance(as_callback)
    preparation.close()
    (tmp_path / ".store.partial-test" / "manifest.json").write_text('{"schema": ')
    write_store(tmp_path / "store", lines(*ROWS), tokenizer, 200, **OPTIONS)
    assert content(tmp_path / "store") == undisturbed


def test_a_torn_line_of_the_journal_costs_its_window_alone(tokenizer, tmp_path):
    preparation = begin(tmp_path / "store", lines(*ROWS), tokenizer, 200, **OPTIONS)
    preparation.advance(as_callback)
    preparation.advance(as_callback)
    preparation.close()
    journal = tmp_path / ".store.partial-test" / "journal"
    journal.write_bytes(journal.read_bytes()[:-5])
    assert begin(tmp_path / "store", lines(*ROWS), tokenizer, 200, **OPTIONS).progress[0] == 200


def test_another_identity_sweeps_what_nobody_works_on(tokenizer, tmp_path):
    abandoned, living = (
        begin(tmp_path / "store", lines(*ROWS), tokenizer, 200, identity=name, **OPTIONS) for name in ("old", "living")
    )
    abandoned.advance(as_callback)
    living.advance(as_callback)
    abandoned.close()
    begin(tmp_path / "store", lines(*ROWS), tokenizer, identity="new").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".store.partial-living",
        ".store.partial-living.lock",
    ]
    assert begin(tmp_path / "store", lines(*ROWS), tokenizer, identity="living") is None
    living.discard()
    assert list(tmp_path.iterdir()) == []


BARE = """
import pathlib, sys, time, types
# The package without its imports, which take seconds.
package = types.ModuleType("grmlight")
package.__path__ = [sys.argv.pop(1)]
sys.modules["grmlight"] = package
from tokenizers import Tokenizer
from tests.data.rows import as_callback, begin
source, tokenizer, target, wait = sys.argv[1:]
OPTIONS = {options}
worked = 0
while not (pathlib.Path(target) / "manifest.json").exists():
    preparation = begin(pathlib.Path(target), source, Tokenizer.from_file(tokenizer), 10, **OPTIONS)
    if preparation is None:
        time.sleep(0.01)
        continue
    print("rows", preparation.progress[0], flush=True)
    while preparation.advance(as_callback):
        worked += 1
        time.sleep(float(wait))
    preparation.finish({{"identity": "test"}})
print("windows", worked, flush=True)
"""


@pytest.fixture
def command(tokenizer, tmp_path):
    import grmlight

    (tmp_path / "rows.jsonl").write_bytes(lines(*ROWS))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    script = BARE.format(options=OPTIONS | {"name": "<bytes>"})
    paths = [tmp_path / "rows.jsonl", tmp_path / "tokenizer.json", tmp_path / "place" / "store"]
    return [sys.executable, "-c", script, grmlight.__path__[0], *map(str, paths)]


def started(command, wait):
    process = subprocess.Popen([*command, str(wait)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process


def told(process):
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return {name: int(value) for name, value in map(str.split, out.splitlines())}


def test_killed_again_and_again_it_gets_done_and_nothing_is_done_twice(command, undisturbed, tmp_path):
    moments, begun = random.Random(0), 0
    for _ in range(4):
        with started(command, 0.01) as process:
            rows = int(process.stdout.readline().split()[1])
            assert rows >= begun
            begun = rows
            time.sleep(moments.uniform(0.02, 0.2))
            process.kill()
        assert not (tmp_path / "place" / "store").exists()
    last = told(started(command, 0))
    assert last["rows"] >= begun > 0
    windows = -(-len(ROWS) // 10)
    assert last["windows"] == windows - last["rows"] // 10
    assert content(tmp_path / "place" / "store") == undisturbed
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["store"]


@pytest.mark.parametrize("processes", [2, 4])
def test_of_several_processes_one_does_the_work(command, undisturbed, tmp_path, processes):
    found = [told(each) for each in [started(command, 0.001) for _ in range(processes)]]
    assert sorted(each["windows"] for each in found)[:-1] == [0] * (processes - 1)
    assert max(each["windows"] for each in found) == -(-len(ROWS) // 10)
    assert content(tmp_path / "place" / "store") == undisturbed
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["store"]


def test_who_waits_takes_over_from_the_dead(command, undisturbed, tmp_path):
    first = started(command, 0.05)
    assert first.stdout.readline() == "rows 0\n"
    second = started(command, 0)
    time.sleep(1.0)
    assert second.poll() is None
    first.kill()
    first.communicate()
    found = told(second)
    assert found["rows"] > 0
    assert found["windows"] == -(-len(ROWS) // 10) - found["rows"] // 10
    assert content(tmp_path / "place" / "store") == undisturbed


def test_a_full_disk_is_said_and_gone_on_from(undisturbed, tokenizer, tmp_path):
    """A limit on the size of files stands for the end of the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    preparation = begin(tmp_path / "store", lines(*ROWS), tokenizer, 50, **OPTIONS)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(OSError, match=r"tokens\.bin: cannot be written; check permissions and free space"):
            go_on(preparation)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    preparation.close()
    preparation = begin(tmp_path / "store", lines(*ROWS), tokenizer, 50, **OPTIONS)
    assert preparation.progress[0] > 0
    go_on(preparation)
    preparation.finish({"identity": "test"})
    assert content(tmp_path / "store") == undisturbed


def go_on(preparation):
    while preparation.advance(as_callback):
        pass


SLOW = "why is the cat so Ümläut 日本語 it is not so " * 100


def slow_rows(count):
    return lines(*({"prompt": f"{n} {SLOW}", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(count)))


def test_other_threads_run_meanwhile(tokenizer, tmp_path):
    """The bound leaves room for the tokenizer's threads; with the interpreter's lock held next to nothing is left."""
    count, stop = [0], threading.Event()

    def counter():
        while not stop.is_set():
            count[0] += 1

    def rate(work):
        start, before = time.monotonic(), count[0]
        work()
        return (count[0] - before) / (time.monotonic() - start)

    thread = threading.Thread(target=counter, daemon=True)
    thread.start()
    try:
        alone = rate(lambda: time.sleep(0.5))
        preparation = begin(tmp_path / "store", slow_rows(300), tokenizer, 300)
        beside = rate(lambda: preparation.advance(as_callback))
        preparation.discard()
    finally:
        stop.set()
        thread.join()
    assert beside > 0.3 * alone


def test_ctrl_c_stops_within_a_second_in_the_middle_of_a_window(tokenizer, tmp_path):
    preparation = begin(tmp_path / "store", slow_rows(5000), tokenizer, 5000)
    sent = []

    def interrupt():
        time.sleep(0.5)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            preparation.advance(as_callback)
        assert time.monotonic() - sent[0] < 1
    finally:
        signal.signal(signal.SIGINT, before)
    preparation.close()
    assert list(tmp_path.iterdir()) == []


MEMORY = """
def held():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])
source, tokenizer, target = sys.argv[1:]
preparation = begin(pathlib.Path(target), source, Tokenizer.from_file(tokenizer), 1000)
most = 0
while preparation.advance(as_callback):
    most = max(most, held())
preparation.finish({"identity": "test"})
print(max(most, held()))
"""


@pytest.mark.slow
def test_memory_stays_while_the_input_grows(command, tmp_path):
    """What is left is 16 bytes a pair, in a table that is half empty at worst, and twice that while it is moved."""
    script = BARE.partition("source, tokenizer, target, wait")[0] + MEMORY
    found = []
    for count in (20_000, 200_000):
        source = tmp_path / f"rows{count}.jsonl"
        with source.open("w") as file:
            for n in range(count):
                file.write(json.dumps({"prompt": f"why {n}?", "chosen": f"so {n % 7}", "rejected": f"no {n}"}) + "\n")
        arguments = [str(source), str(tmp_path / "tokenizer.json"), str(tmp_path / f"store{count}")]
        done = subprocess.run(
            [*command[:2], script, command[3], *arguments], capture_output=True, text=True, check=True
        )
        found.append(int(done.stdout) * 1024)
        assert len(Store(arguments[-1])) == count
    assert found[1] - found[0] < 180_000 * 16 * 4 + (4 << 20)
