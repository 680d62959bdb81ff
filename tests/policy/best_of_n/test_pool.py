"""Pools: what was paid for is kept, whatever kills the run; a continued run gives the same file."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from grmlight.policy.best_of_n.fill import BLOCK, fill
from grmlight.policy.best_of_n.pool import Pool
from grmlight.policy.sampler import SamplingOptions
from tests.policy.best_of_n.samplers import Dice, Mute

IDENTITY = {"policy": "dice", "seed": 3}
PROMPTS = ["one", "two", "three"]


def opened(path, identity=None, prompts=PROMPTS):
    return Pool(path, identity or IDENTITY, len(prompts))


def filled(path, samples, sampler=None, prompts=PROMPTS, rows=BLOCK):
    pool = opened(path, prompts=prompts)
    options = SamplingOptions(samples=samples, rows_per_batch=rows)
    return pool, fill(pool, prompts, options, 3, lambda: sampler or Dice())


def everything(pool):
    return [pool.answers(prompt) for prompt in range(pool.prompts)]


def test_a_pool_is_read_as_it_was_written(tmp_path):
    pool, added = filled(tmp_path / "pool.jsonl", 600)
    assert pool.counts().tolist() == [600] * 3
    assert (added.sampler, added.answers) == ("dice", 1800)
    assert everything(opened(tmp_path / "pool.jsonl")) == everything(pool)
    assert pool.answers(1, 5) == pool.answers(1)[:5]
    assert len({tuple(answers) for answers in everything(pool)}) == 3
    assert len(set(pool.answers(0)[:BLOCK]) ^ set(pool.answers(0)[BLOCK : 2 * BLOCK])) > 0


def test_a_whole_pool_needs_no_sampler(tmp_path):
    filled(tmp_path / "pool.jsonl", 600)

    def never():
        raise AssertionError

    found = fill(opened(tmp_path / "pool.jsonl"), PROMPTS, SamplingOptions(samples=600), 3, never)
    assert (found.answers, found.seconds) == (0, 0.0)
    assert fill(opened(tmp_path / "pool.jsonl"), PROMPTS, SamplingOptions(samples=7), 3, never).answers == 0


@pytest.mark.parametrize("call", [0, 1, 4, 8])
def test_a_killed_run_loses_no_block_and_goes_on_to_the_same_file(tmp_path, call):
    filled(tmp_path / "whole.jsonl", 600)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    code = (
        "import sys; from pathlib import Path; import tests.policy.best_of_n.test_pool as t;"
        "from tests.policy.best_of_n.samplers import Mortal;"
        "t.filled(Path(sys.argv[1]), 600, Mortal(int(sys.argv[2])))"
    )
    path = tmp_path / "pool.jsonl"
    repository = Path(__file__).parents[3]
    killed = subprocess.run([sys.executable, "-c", code, str(path), str(call)], cwd=repository)
    assert killed.returncode == -signal.SIGKILL
    assert opened(path).counts().sum() == min(call, 8) // 3 * 600 + [0, BLOCK, 2 * BLOCK][call % 3]
    assert whole.startswith(path.read_bytes())
    _, added = filled(path, 600)
    assert path.read_bytes() == whole
    assert added.answers < 1800 or call == 0


def test_what_a_kill_leaves_of_a_line_is_cut_off_and_sampled_again(tmp_path):
    filled(tmp_path / "pool.jsonl", 600)
    whole = (tmp_path / "pool.jsonl").read_bytes()
    for length in (len(whole) - 1, len(whole) - 1000, whole.index(b"\n") + 5, whole.index(b"\n") - 5):
        (tmp_path / "pool.jsonl").write_bytes(whole[:length])
        if length < whole.index(b"\n"):
            with pytest.raises(ValueError, match="no line of a pool"):
                opened(tmp_path / "pool.jsonl")
            continue
        assert opened(tmp_path / "pool.jsonl").cut_off > 0
        filled(tmp_path / "pool.jsonl", 600)
        assert (tmp_path / "pool.jsonl").read_bytes() == whole


@pytest.mark.parametrize(("less", "more"), [(2, 600), (300, 700), (256, 257)])
def test_a_pool_grows_and_keeps_what_it_has(tmp_path, less, more):
    pool, _ = filled(tmp_path / "pool.jsonl", less)
    before = everything(pool)
    pool, added = filled(tmp_path / "pool.jsonl", more)
    assert added.answers == 3 * (more - less)
    assert [answers[:less] for answers in everything(pool)] == before
    assert pool.counts().tolist() == [more] * 3
    assert everything(opened(tmp_path / "pool.jsonl")) == everything(pool)


def test_answers_do_not_depend_on_how_many_prompts_go_together(tmp_path):
    prompts = [str(number) for number in range(40)]
    one, _ = filled(tmp_path / "one.jsonl", 2, prompts=prompts)
    other, _ = filled(tmp_path / "other.jsonl", 2, prompts=prompts, rows=BLOCK * 4)
    assert everything(one) == everything(other)


def test_refused_prompts_have_no_answers_and_keep_their_reason(tmp_path):
    pool, added = filled(tmp_path / "pool.jsonl", 5, Dice(refuse=(1,)))
    assert pool.counts().tolist() == [5, 0, 5]
    assert added.answers == 10
    assert opened(tmp_path / "pool.jsonl").refused == {1: "is empty; leave it out"}
    with pytest.raises(ValueError, match="none of the 3 prompts can be answered: prompt 1 is empty"):
        filled(tmp_path / "none.jsonl", 5, Dice(refuse=(0, 1, 2)))


def test_a_pool_of_another_policy_is_refused_by_name(tmp_path):
    filled(tmp_path / "pool.jsonl", 5)
    with pytest.raises(ValueError, match=r"pool\.jsonl: was sampled with another policy, temperature; name another"):
        opened(tmp_path / "pool.jsonl", {"policy": "other", "seed": 3, "temperature": 1.0})


def test_a_broken_line_is_named(tmp_path):
    filled(tmp_path / "pool.jsonl", 5)
    lines = (tmp_path / "pool.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "pool.jsonl").write_text("".join([*lines, '{"prompts": 3}\n']))
    with pytest.raises(ValueError, match="line 4 is no line of a pool"):
        opened(tmp_path / "pool.jsonl")


def test_a_sampler_that_gives_too_little_is_named_and_earlier_answers_stay(tmp_path):
    class Short(Dice):
        def generate(self, prompts, options, seed, numbers=None):
            if self.calls == 2:
                return super().generate(prompts, SamplingOptions(samples=1), seed, numbers)
            return super().generate(prompts, options, seed, numbers)

    with pytest.raises(ValueError, match="sampler dice gave 1 of 88 answers to prompts 1 to 1"):
        filled(tmp_path / "pool.jsonl", 600, Short())
    assert opened(tmp_path / "pool.jsonl").counts().tolist() == [512, 0, 0]


def test_only_end_of_text_is_an_answer(tmp_path):
    pool, _ = filled(tmp_path / "pool.jsonl", 5, Mute())
    assert [answer.text for answer in pool.answers(0)] == [""] * 5


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (lambda lines: [*lines, lines[2]], 9, "begins at answer 1 to prompt 1, of which 400 are there before it"),
        (lambda lines: lines[:3] + lines[2:], 4, "begins at answer 1 to prompt 1, of which 256 are there before it"),
        (lambda lines: lines[:2] + lines[3:], 3, "begins at answer 257 to prompt 1, of which 0 are there before it"),
        (lambda lines: [lines[0], *lines[2:]], 2, "has answers before the line of the prompts that are refused"),
        (lambda lines: [*lines, lines[1]], 9, "says again which prompts are refused"),
        (lambda lines: [*lines, lines[2].replace('"prompts": [0]', '"prompts": [3]')], 9, "answers prompt 4, which is"),
        (lambda lines: [*lines, lines[2].replace('"prompts": [0]', '"prompts": [0, 1]')], 9, "has not equally many"),
    ],
)
def test_blocks_that_are_there_twice_or_not_at_all_are_named(tmp_path, change, line, message):
    filled(tmp_path / "pool.jsonl", 400)
    lines = (tmp_path / "pool.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "pool.jsonl").write_text("".join(change(lines)))
    with pytest.raises(ValueError, match=rf"pool\.jsonl: line {line} {message}.*; remove it and all lines behind it"):
        opened(tmp_path / "pool.jsonl")


def test_a_pool_whose_prompts_are_all_refused_says_so_every_time(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="none of the 3 prompts can be answered: prompt 1 is empty"):
            filled(tmp_path / "pool.jsonl", 5, Dice(refuse=(0, 1, 2)))


def test_digests_are_of_all_blocks_up_to_theirs_read_or_written(tmp_path):
    pool, _ = filled(tmp_path / "pool.jsonl", 600)
    assert opened(tmp_path / "pool.jsonl").digests == pool.digests
    assert len(set(pool.digests)) == len(pool.blocks) == 9
    path = tmp_path / "pool.jsonl"
    text = path.read_text()
    middle = text.index('"first": 256')
    path.write_text(text[:middle] + text[middle:].replace("dog", "god", 1))
    changed = opened(path).digests
    assert [one == other for one, other in zip(pool.digests, changed, strict=True)] == [True] + [False] * 8
