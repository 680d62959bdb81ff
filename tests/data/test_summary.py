"""What a prepared data set holds, against counting by hand."""

import json

import numpy as np
import pytest

from grmlight.data import PrepareOptions, prepare
from grmlight.data.summary import describe_summary, summarize


@pytest.mark.parametrize("count", [1, 40])
def test_lengths_and_sharing_are_those_of_the_texts(byte_tokenizer, tmp_path, monkeypatch, count):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": "é" * (n + 1), "chosen": "y" * (2 * n + 1), "rejected": "x" * 3} for n in range(count)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = prepare(str(tmp_path / "pairs.jsonl"), str(byte_tokenizer), PrepareOptions())
    figures = summarize(found)
    lengths = {"prompt": [], "chosen": [], "rejected": []}
    shared = 0
    for group in range(count):
        arrays = found.store.pack(np.array([group]), np.ones(1, np.float32))
        bounds = arrays["bounds"].tolist()
        shared += bounds[1]
        scored = [int((arrays["response_L"] == response).sum()) for response in (0, 1)]
        lengths["chosen"].append(scored[0])
        lengths["rejected"].append(scored[1])
        lengths["prompt"].append(bounds[2] - scored[0])
    for name, values in lengths.items():
        ordered = sorted(values)
        middle, far = ordered[-(-(count - 1) // 2)], ordered[-(-95 * (count - 1) // 100)]
        assert figures["lengths"][name] == {"p50": middle, "p95": far, "max": ordered[-1]}
    tokens = int(found.store.costs.sum())
    assert (figures["pairs"], figures["tokens"]) == (count, tokens)
    assert figures["shared"] == pytest.approx(shared / (tokens + shared))
    assert f"{count} rows in 2.0 s, {count / 2:.0f} rows/s" in describe_summary(found, 2.0)
    again = prepare(str(tmp_path / "pairs.jsonl"), str(byte_tokenizer), PrepareOptions())
    assert "was there already" in describe_summary(again, 2.0)
