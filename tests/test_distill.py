"""A linear head for an MLP one: the fit against plain least squares, and what is measured on which pairs."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from grmlight.data import PrepareOptions, prepare
from grmlight.data.loader import GroupLoader
from grmlight.distill import _ridge, distill
from grmlight.models import HeadConfig, RewardHead, Scorer, Signal
from tests import interop
from tests.models import twins


@pytest.fixture
def prepared(byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    return prepare(interop.pairs_file(tmp_path, 50), str(byte_tokenizer), PrepareOptions())


@pytest.fixture
def model(byte_tokenizer, tmp_path):
    twins.base_lm(tmp_path / "lm", byte_tokenizer)
    return interop.make(tmp_path / "lm", byte_tokenizer, "mlp", "full")


def test_the_fit_is_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    wanted = torch.randn(40, generator=generator, dtype=torch.float64)
    penalty = 0.01 * float((states**2).sum(0).mean())
    # Least squares on the data with rows of their own for the penalty.
    stacked = np.vstack([states.numpy(), np.sqrt(penalty) * np.eye(6)])
    expected = np.linalg.lstsq(stacked, np.concatenate([wanted.numpy(), np.zeros(6)]), rcond=None)[0]
    torch.testing.assert_close(_ridge(states, wanted, 0.01), torch.from_numpy(expected))


def test_what_is_reported_is_what_the_new_head_does_on_pairs_it_has_not_seen(model, prepared):
    before, after = [], []
    for batch in GroupLoader(prepared.store, 50):
        before = Scorer(model).score(batch).view(-1, 2)
    found = distill(model, prepared, pairs_per_batch=7)
    for batch in GroupLoader(prepared.store, 50):
        after = Scorer(model).score(batch).view(-1, 2)
    gaps = [(each[:, 0] - each[:, 1])[4::5].numpy() for each in (before, after)]
    assert (found.pairs, found.fitted) == (10, 40)
    assert found.agreement == pytest.approx(np.mean(np.sign(gaps[0]) == np.sign(gaps[1])))
    assert found.correlation == pytest.approx(np.corrcoef(*gaps)[0, 1], abs=1e-4)
    assert (found.accuracy, found.distilled_accuracy) == tuple(pytest.approx((gap > 0).mean()) for gap in gaps)
    assert model.head_config == HeadConfig(kind="linear", dropout=0.0)
    # The level stays: the mean reward is the same.
    assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-4)


def test_a_linear_teacher_is_met_exactly(model, prepared):
    config = HeadConfig(kind="linear", dropout=0.0)
    model.head, model.head_config = RewardHead(32, config, seed=3), config
    model.reward_shift.fill_(0.3)
    model.reward_scale.fill_(2.0)
    (batch,) = GroupLoader(prepared.store, 50)
    before = Scorer(model).score(batch)
    found = distill(model, prepared)
    assert found.agreement == 1.0
    assert found.correlation > 0.999
    torch.testing.assert_close(Scorer(model).score(batch), before, rtol=0, atol=1e-2)
    assert (float(model.reward_shift), float(model.reward_scale)) == (0.0, 1.0)
    assert model(batch, frozenset({Signal.HIDDEN})).hidden_NH is not None


def test_too_few_pairs_are_one_line(model, byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    assert AutoTokenizer.from_pretrained(byte_tokenizer).chat_template
    with pytest.raises(ValueError, match="holds 2 usable pairs; distillation needs at least 20"):
        distill(model, prepare(interop.pairs_file(tmp_path), str(byte_tokenizer), PrepareOptions()))


def test_labels_decide_the_accuracy_and_rankings_stay_whole(model, byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    words = ["so", "not so", "why not", "if it is so", "never", "well then"]
    rows = [{"prompt": f"why {i}", "responses": [f"{word} {i * k}" for k, word in enumerate(words)]} for i in range(20)]
    for row in rows:
        row["ratings"] = [1, 2, 3, 4, 5, 6]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = copy.deepcopy(model)
    found = distill(whole, prepare(str(tmp_path / "ranked.jsonl"), str(byte_tokenizer), PrepareOptions()))
    # 15 comparisons a ranking; every fifth ranking is held out.
    assert (found.pairs, found.fitted) == (60, 240)

    def accuracy(label):
        pairs = [
            {"prompt": row["prompt"], "chosen": row["responses"][0], "rejected": row["responses"][1]} for row in rows
        ]
        path = tmp_path / f"{label}.jsonl"
        path.write_text("".join(json.dumps(pair | {"soft_label": label}) + "\n" for pair in pairs))
        return distill(copy.deepcopy(model), prepare(str(path), str(byte_tokenizer), PrepareOptions())).accuracy

    assert accuracy(0.1) == pytest.approx(1 - accuracy(0.9))
