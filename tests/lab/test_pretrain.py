import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from grmlight.lab import pretrain as pretraining
from grmlight.lab.gold import Gold
from grmlight.lab.pretrain import (
    Recipe,
    batches,
    corpus_gold,
    encode_corpus,
    lm_config,
    measure_gold,
    pretrain,
    save_lm,
)
from grmlight.lab.sample import sample_responses
from grmlight.lab.words import EOS, stream
from grmlight.lab.world import Split, World, draw_prompt

TINY = Recipe(documents=640)


def test_the_shipped_lm_writes_like_its_corpus(lm, shipped, words):
    rng = stream("fresh prompts")
    prompts = [draw_prompt(rng, Split.ID).text for _ in range(600)]
    drawn = [row[0] for row in sample_responses(lm, words, prompts, 1, seed=1)]
    gold = Gold(World(0)).scores(prompts, [answer.text for answer in drawn], [answer.ended for answer in drawn])
    mean, deviation = corpus_gold(World(0))
    # A standard error is 0.06, and the LM and its corpus differ by 0.1.
    assert gold.mean() == pytest.approx(mean, abs=0.3)
    assert gold.mean() == pytest.approx(shipped.gold.mean, abs=0.25)
    assert gold.std() == pytest.approx(deviation, abs=0.25)
    assert sum(answer.ended for answer in drawn) > 590


def test_the_shipped_lm_is_an_ordinary_hugging_face_model(shipped):
    model = AutoModelForCausalLM.from_pretrained(shipped.lm)
    assert sum(parameter.numel() for parameter in model.parameters()) == 358_944
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == lm_config().vocab_size
    assert model.generation_config.eos_token_id == model.config.eos_token_id != model.config.pad_token_id


def test_the_shipped_gold_is_standardized_on_the_shipped_lm(lm, shipped):
    measured = measure_gold(lm, World(0))
    assert measured.mean == pytest.approx(shipped.gold.mean, abs=0.25)
    assert measured.deviation == pytest.approx(shipped.gold.deviation, abs=0.2)


def test_the_state_at_the_end_token_knows_the_answers_quality(lm, words):
    """A ridge probe's correlation with the gold: about .6 in distribution, lower and above chance out of it."""

    def features(split, count):
        rng = stream("probe", split)
        prompts = [draw_prompt(rng, split) for _ in range(count)]
        drawn = sample_responses(lm, words, [prompt.text for prompt in prompts], 1, seed=5)
        texts = [answer[0].text for answer in drawn]
        states = []
        for prompt, text in zip(prompts, texts, strict=True):
            ids = words(f"<bos> {prompt.text} <sep> {text} {EOS}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                states.append(lm.model(ids).last_hidden_state[0, -1].double().numpy())
        return np.stack(states), Gold(World(0)).scores(prompts, texts)

    states, gold = features(Split.ID, 1000)
    center, scale = states[:700].mean(0), states[:700].std(0)
    train = (states[:700] - center) / scale
    weights = np.linalg.solve(train.T @ train + 10 * np.eye(96), train.T @ (gold[:700] - gold[:700].mean()))
    assert np.corrcoef((states[700:] - center) @ (weights / scale), gold[700:])[0, 1] > 0.4
    shifted, shifted_gold = features(Split.OOD_ALL, 300)
    assert np.corrcoef((shifted - center) @ (weights / scale), shifted_gold)[0, 1] > 0.2


def test_a_few_steps_of_pretraining_learn_something():
    model, losses = pretrain(World(3), TINY)
    assert len(losses) == TINY.steps == 20
    assert losses[0] == pytest.approx(np.log(102), abs=0.4)
    assert losses[-1] < losses[0] - 0.7
    assert not model.training


def test_pretraining_is_reproducible_and_follows_the_seed():
    before = torch.get_rng_state()
    weights = [pretrain(World(seed), Recipe(documents=96))[0].state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["lm_head.weight"], weights[2]["lm_head.weight"])
    assert torch.equal(before, torch.get_rng_state())


def test_every_document_is_read_once():
    documents = encode_corpus(World(0), 100)
    dealt = list(batches(documents, 32, stream("batches")))
    read = sorted(tuple(row[row >= 0].tolist()) for batch in dealt for row in batch)
    assert read == sorted(tuple(document.tolist()) for document in documents)
    assert sorted(len(batch) for batch in dealt) == [4, 32, 32, 32]


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    recipe = Recipe()
    rates = [recipe.rate(step) for step in range(recipe.steps)]
    assert recipe.steps == 2000
    assert rates[0] == 0.01
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates == [*sorted(rates[:100]), *sorted(rates[100:], reverse=True)]
    assert rates[-1] < 1e-5


def test_a_saved_lm_is_the_same_model(tmp_path):
    model, _ = pretrain(World(3), Recipe(documents=64))
    save_lm(model, tmp_path / "lm")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert {file.name for file in (tmp_path / "lm").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretraining.Recipe, "steps", 10)
    monkeypatch.setattr(pretraining, "encode_corpus", lambda world, documents: encode_corpus(world, 320))
    pretraining.main(["--seed", "3", "--out", str(tmp_path / "lm")])
    printed = capsys.readouterr().out
    assert "nats a token" in printed
    assert "corpus 6." in printed
    assert (tmp_path / "lm" / "model.safetensors").exists()


def test_the_commands_explain_themselves():
    for module in ("pretrain", "build"):
        command = [sys.executable, "-W", "error::RuntimeWarning", "-m", f"grmlight.lab.{module}", "--help"]
        assert "--seed" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
