"""read_pairs on files: numbers of rows, strides, what cannot be read, hostile bytes, interrupts, and real data."""

import gzip
import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from grmlight import _data_rs
from grmlight._data_rs import read_pairs
from tests.data.rows import agree, assistant, content_of, lines, user
from tests.data.test_data_rs_rows import TEXT


def test_rows_have_numbers_and_columns(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines("", TEXT, " \t", TEXT | {"prompt": "q"}) + b"\r\n")
    pairs, _ = agree(str(path), path.read_bytes(), first_row=11)
    assert [pairs.row(0), pairs.row(1), pairs.rows] == [12, 14, 2]


@pytest.mark.parametrize("stride", [2, 20, 100])
def test_strides_and_flips(stride):
    rows = [TEXT | {"prompt": f"{number}"} if number % 7 else {"chosen": 1, "rejected": 2} for number in range(1, 900)]
    pairs, _ = agree(lines(*rows), stride=stride, flip=0.25, flip_seed=3)
    assert pairs.row(1) - pairs.row(0) >= stride
    assert pairs.skipped + len(pairs) == 771


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl: cannot be read"):
        read_pairs(str(tmp_path / "missing.jsonl"), {})
    with pytest.raises(OSError, match="cannot be read"):
        read_pairs(str(tmp_path), {})
    whole = gzip.compress(lines(*(TEXT | {"prompt": f"{i}"} for i in range(1000))))
    for name, data in {"cut": whole[: len(whole) // 2], "changed": whole[:200] + b"xxxx" + whole[204:]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(OSError, match=rf"{name}: cannot be read at row \d+; the file is damaged or cut off"):
            read_pairs(str(tmp_path / name), {})
    assert len(read_pairs(whole, {})) == 1000


def test_hostile_lines():
    deep = '{"chosen": "a c", "rejected": "a d", "x": ' + "[" * 5000 + "]" * 5000 + "}"
    turns = [user("q"), assistant("a")] * 5000
    long = {"chosen": [*turns, user("q"), assistant("x")], "rejected": [*turns, user("q"), assistant("y")]}
    transcript = "\n\nHuman: q\n\nAssistant: a" * 5000
    hostile = [
        b'{"chosen": "\xff", "rejected": "b"}',
        b'{"chosen": "\x00", "rejected": "b"}',
        b'{"chosen": "\\u0000 a", "rejected": "\\u0000 b"}',
        b"\x00" * 100,
        deep.encode(),
        lines(long),
        lines({"chosen": transcript + "b", "rejected": transcript}),
        lines({"prompt": "p" * 20_000_000, "chosen": "a", "rejected": "b"}),
        lines({"chosen": "\U0001f600 e\u0301 a", "rejected": "\U0001f600 e\u0301 b"}),
        b'{"chosen": "NaN, \\" NaN", "rejected": "NaN", "margin": NaN}',
        b'{"chosen": "x", "rejected": "y", "id": 123456789012345678901234567890}',
    ]
    pairs, _ = agree(b"\n".join([lines(TEXT), *hostile]))
    assert pairs.refused == {"invalid_json": [2, 3, 5, 6], "bad_number": [11]}


LONG_LINE = """
import importlib.util, pathlib, re, sys
spec = importlib.util.spec_from_file_location("_data_rs", sys.argv[2])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

def most():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text()).group(1))

before = most()
pairs = module.read_pairs(sys.argv[1], {})
print(len(pairs), most() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from Linux")
def test_lines_of_100_megabytes_take_little_more_than_one_of_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [json.dumps(TEXT)]
    for part in ("{},", '0,[[0]],"a",'):
        items = part * (33_000_000 // len(part)) + "0"
        rows.append(
            json.dumps(TEXT | {"prompt": part})[:-1] + f', "ratings": [{items}], "x": [{items}], "id": [{items}]}}'
        )
    path.write_bytes(lines(*rows))
    found = subprocess.run(
        [sys.executable, "-c", LONG_LINE, str(path), _data_rs.__file__], capture_output=True, text=True, check=True
    )
    usable, kilobytes = map(int, found.stdout.split())
    assert usable == 3
    assert 90_000 < kilobytes < 200_000


def test_white_space_is_what_python_says():
    characters = [chr(code) for code in range(0x3100) if not 0xD800 <= code < 0xE000]
    pairs, _ = agree(lines(*({"prompt": "p", "chosen": character, "rejected": "b"} for character in characters)))
    blank = [number for number, character in enumerate(characters, 1) if character.isspace()]
    assert pairs.refused["empty"] == blank


def test_groups_out_of_range():
    pairs = read_pairs(lines(TEXT), {})
    with pytest.raises(IndexError, match="there is no group 1 among 1"):
        pairs.group(1)
    with pytest.raises(IndexError):
        pairs.row(1)


def interrupt(*_):
    raise KeyboardInterrupt


def test_ctrl_c_ends_a_long_reading():
    """In seconds of processor time, by which the signal comes too: a busy machine changes neither."""
    data = (lines(TEXT) + b"\n") * 400_000
    begin = time.process_time()
    read_pairs(data, {})
    whole = time.process_time() - begin
    before = signal.signal(signal.SIGPROF, interrupt)
    begin = time.process_time()
    try:
        signal.setitimer(signal.ITIMER_PROF, whole / 10)
        with pytest.raises(KeyboardInterrupt):
            read_pairs(data, {})
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert time.process_time() - begin < 0.6 * whole


REASONS = {
    "identical": "identical",
    "prompts differ": "prompt_differs",
    "roles do not alternate": "role_order",
    "empty response": "empty",
}


@pytest.mark.shared_data
def test_defects_of_hh_are_refused_by_their_reason(shared_data):
    path = shared_data / "hh_defects_raw.jsonl"
    pairs, _ = agree(str(path), path.read_bytes())
    expected = defaultdict(list)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        expected[REASONS[json.loads(line)["reason"]]].append(number)
    assert pairs.refused == expected
    assert len(pairs) == 0


@pytest.mark.shared_data
def test_every_shared_file_agrees_with_the_oracle(shared_data):
    files = sorted(path for path in shared_data.iterdir() if ".jsonl" in path.suffixes)
    assert len(files) == 11
    for path in files:
        pairs, _ = agree(str(path), content_of(path), flip=0.25, flip_seed=1)
        assert pairs.rows == len(pairs) + sum(map(len, pairs.refused.values()))


def test_the_limit_of_python_is_not_ours():
    data = lines(TEXT, '{"prompt": "p", "chosen": "a", "rejected": "c", "id": ' + "9" * 5000 + "}")
    assert sys.get_int_max_str_digits() < 5000
    assert read_pairs(data, {}).refused == {"bad_number": [2]}
