"""Rollouts as groups and as files; what a sampler may not return."""

import json
import logging

import numpy as np
import pytest

from grmlight.policy.rollouts import Answer, Rollout, Rollouts, checked, read_rollouts, write_rollouts

TALK = ({"role": "system", "content": "be"}, {"role": "user", "content": "wer da?  "})


def _answer(*tokens, text="a b", ended=True, logps=True):
    found = np.linspace(-3.3, -1e-7, len(tokens)).astype(np.float32) if logps else None
    return Answer(np.array(tokens, np.int64), text, ended, found)


def _rollouts(*more):
    first = Rollout("why", np.array([4, 5, 6]), (_answer(7, 8, 2), _answer(9, ended=False, logps=False)))
    second = Rollout(TALK, np.array([4]), (_answer(1, text="z\u2028\ud83d"), _answer(3, 3, text='"\n')))
    return Rollouts((first, second, *more), "huggingface", 0.1 + 0.2)


def test_groups_are_prompt_and_answers():
    rollouts = _rollouts()
    text, tokens = rollouts.groups[0].text_group(), rollouts.groups[0].token_group()
    assert (text.prompt, text.responses, text.ended) == ("why", ("a b", "a b"), (True, False))
    assert [each.tolist() for each in tokens.responses] == [[4, 5, 6, 7, 8, 2], [4, 5, 6, 9]]
    assert tokens.starts == (3, 3)
    batch = rollouts.batch()
    assert (batch.groups, batch.responses, batch.group_N.tolist()) == (2, 4, [0, 0, 1, 1])
    assert batch.target_L.tolist() == [7, 8, 2, 9, 1, 3, 3]
    assert batch.response_L.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert batch.better_C.numel() == 0


def test_files_are_exact(tmp_path):
    path = tmp_path / "new" / "rollouts.jsonl"
    rollouts = _rollouts()
    write_rollouts(path, rollouts)
    found = read_rollouts(path)
    assert (found.sampler, found.seconds) == (rollouts.sampler, rollouts.seconds)
    for one, other in zip(found.groups, rollouts.groups, strict=True):
        assert one.prompt == other.prompt
        assert one.prompt_tokens.tolist() == other.prompt_tokens.tolist()
        assert one.prompt_tokens.dtype == np.int64
    for one, other in zip(found.answers, rollouts.answers, strict=True):
        assert (one.tokens.tolist(), one.text, one.ended) == (other.tokens.tolist(), other.text, other.ended)
        assert one.tokens.dtype == np.int64
        assert (one.logps is None) == (other.logps is None)
        assert one.logps is None or (one.logps.dtype == np.float32 and one.logps.tobytes() == other.logps.tobytes())
    assert [each.name for each in path.parent.iterdir()] == ["rollouts.jsonl"]
    write_rollouts(path, Rollouts((), "vllm", 0.0))
    assert read_rollouts(path) == Rollouts((), "vllm", 0.0)


def test_a_line_that_is_none_is_named(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    write_rollouts(path, _rollouts())
    lines = path.read_text().splitlines()
    for number, line in ((1, "{}"), (2, lines[1][:-9]), (3, json.dumps({"prompt": "x"}))):
        path.write_text("\n".join([*lines[: number - 1], line, *lines[number:]]))
        with pytest.raises(ValueError, match=f"rollouts.jsonl: line {number} is none of rollouts"):
            read_rollouts(path)
    path.write_text("")
    with pytest.raises(ValueError, match="line 1 is none of rollouts"):
        read_rollouts(path)


def test_what_was_sampled_is_counted(caplog):
    empty = Rollout("who", np.array([4]), (_answer(2, text=""), _answer(2, text=" ")))
    rollouts = _rollouts(empty)
    with caplog.at_level(logging.WARNING, "grmlight"):
        assert checked(rollouts, 2) is rollouts
        assert [record.message for record in caplog.records] == [
            "sampler huggingface: 2 of 6 answers are empty (only end-of-text), the first to prompt 3"
        ]
        caplog.clear()
        checked(_rollouts(), 2)
        assert not caplog.records
    assert rollouts.describe() == (
        "sampled by huggingface: 6 answers to 3 prompts, 9 tokens in 0.3 s; 2 empty, 1 cut off at the length limit"
    )


def test_what_is_missing_or_not_finite_is_named():
    with pytest.raises(ValueError, match="sampler huggingface: prompt 3 has 0 of 2 answers"):
        checked(_rollouts(Rollout("who", np.array([4]), ())), 2)
    bad = Answer(np.array([3]), "x", True, np.array([np.nan], np.float32))
    with pytest.raises(ValueError, match="prompt 3's answers are not finite"):
        checked(_rollouts(Rollout("who", np.array([4]), (bad, bad))), 2)
