"""Rewards of text: the same as one response at a time, whatever the groups, the budget and the model."""

import json
import math
import random

import pytest
import torch

from grmlight.data.options import PrepareOptions
from grmlight.data.texts import TextGroup
from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation import GroupScorer, ModelScorer, ScoringOptions, open_scorer
from grmlight.export import save_model
from grmlight.models import HeadConfig
from grmlight.scoring import score
from tests.tiny_models import tiny_reward_model

WORDS = "the a red green cat dog runs sleeps under over house tree why who said it was not so very well".split()


def tiny_model(architecture="llama", **options):
    head = HeadConfig(width=16, dropout=0.5)
    return tiny_reward_model(
        architecture, head=head, config={"vocab_size": 320, "max_position_embeddings": 512}, **options
    )


def text(draw, low=1, high=12):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))


@pytest.fixture(scope="module")
def groups():
    """1, 2, 5 and 64 responses; equal ones, an empty prompt's beginning, a conversation that goes different ways."""
    draw = random.Random(6)
    found = [TextGroup(text(draw), tuple(text(draw) for _ in range(count))) for count in (1, 2, 5, 64, 2)]
    turns = (
        {"role": "user", "content": "why"},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "?"},
    )
    found.append(TextGroup(turns, ("yes", "no", "yes")))
    found.append(TextGroup(turns[:1], ((*turns[1:], {"role": "assistant", "content": "a dog"}), "it was not")))
    return found


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer):
    return load_tokenizer(str(byte_tokenizer))


def one_by_one(model, tokenizer, groups, special_tokens=False):
    """Plain transformers: render, tokenize, run, read the last token's state."""
    model.eval()
    found = []
    for group in groups:
        prompt = [{"role": "user", "content": group.prompt}] if isinstance(group.prompt, str) else list(group.prompt)
        rewards = []
        for response in group.responses:
            rest = [{"role": "assistant", "content": response}] if isinstance(response, str) else list(response)
            rendered = tokenizer.apply_chat_template(prompt + rest, tokenize=False)
            ids = torch.tensor([tokenizer(rendered, add_special_tokens=special_tokens)["input_ids"]])
            with torch.no_grad():
                states = model.lm.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
                rewards.append(float(model.head(states[0, -1:])[0]))
        found.append(rewards)
    model.train()
    return found


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "falcon"])
@pytest.mark.parametrize("budget", [1, 150, 16_384])
def test_rewards_are_those_of_each_response_alone(architecture, budget, groups, tokenizer):
    model = tiny_model(architecture)
    scorer: GroupScorer = ModelScorer(model, tokenizer, tokens_per_forward=budget)
    found = scorer.score(groups)
    assert [len(each) for each in found] == [len(group.responses) for group in groups]
    alone = [[scorer.score([TextGroup(g.prompt, (r,))])[0][0] for r in g.responses] for g in groups[:3] + groups[5:]]
    for rewards, expected in zip(found[:3] + found[5:], alone, strict=True):
        assert rewards == pytest.approx(expected, abs=1e-5)
    backwards = scorer.score(groups[::-1])[::-1]
    for rewards, expected in zip(found, backwards, strict=True):
        assert rewards == pytest.approx(expected, abs=1e-5)
    assert found[5][0] == pytest.approx(found[5][2], abs=1e-6)
    assert model.training


def test_rewards_are_those_of_plain_transformers(groups, tokenizer):
    model = tiny_model(packing="never")
    expected = one_by_one(model, tokenizer, groups)
    for scored in (model, packed := tiny_model()):
        assert packed.packed
        for found, wanted in zip(ModelScorer(scored, tokenizer).score(groups), expected, strict=True):
            assert found == pytest.approx(wanted, abs=1e-5)


def test_a_forward_stays_within_the_budget(groups, tokenizer, monkeypatch):
    scorer, sizes = ModelScorer(tiny_model(), tokenizer, tokens_per_forward=200), []
    forward = scorer._scorer.score
    monkeypatch.setattr(scorer._scorer, "score", lambda batch: sizes.append(len(batch.input_ids_T)) or forward(batch))
    scorer.score(groups)
    assert max(sizes) <= 200
    assert 5 < len(sizes) < 40


def test_long_groups_are_refused_or_cut_and_counted(tokenizer):
    model, short = tiny_model(), TextGroup("why", ("so", "no"))
    long = TextGroup("why " * 40, ("so", "no"))
    huge = TextGroup("why", ("so", "so " * 100))
    dropping = ModelScorer(model, tokenizer, PrepareOptions(max_length=60))
    found = dropping.score([long, short, huge])
    assert all(map(math.isnan, found[0] + found[2]))
    assert all(map(math.isfinite, found[1]))
    assert dropping.refused == {0: "over_length", 2: "over_length"}
    assert dropping.truncated == []
    cutting = ModelScorer(model, tokenizer, PrepareOptions(max_length=60, on_overlong="truncate_prompt"))
    cut = cutting.score([long, short, huge])
    assert all(map(math.isfinite, cut[0] + cut[1]))
    assert cut[1] == pytest.approx(found[1], abs=1e-6)
    assert (cutting.refused, cutting.truncated) == ({2: "over_length"}, [0])
    with pytest.raises(ValueError, match="group 1 has .* max_length is 60"):
        ModelScorer(model, tokenizer, PrepareOptions(max_length=60, on_overlong="raise")).score([long])
    assert dropping.score([]) == []
    assert dropping.refused == {}
    with pytest.raises(ValueError, match="tokens_per_forward"):
        ModelScorer(model, tokenizer, tokens_per_forward=0)


@pytest.mark.parametrize("paper_text", [False, True])
def test_a_folder_is_opened_and_reads_text_as_its_training_did(paper_text, byte_tokenizer, tmp_path, monkeypatch):
    """Pairs of a file get the rewards that `grmlight score` writes for them, through the store."""
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    draw = random.Random(2)
    options = PrepareOptions(max_length=90, on_overlong="truncate_prompt", paper_text=paper_text)
    save_model(tiny_model(), tmp_path / "run" / "model", str(byte_tokenizer), options)
    rows = []
    for number in range(12):
        first = {"role": "user", "content": text(draw, 1, 40)}
        sides = [[first, {"role": "assistant", "content": text(draw)}] for _ in "ab"]
        rows.append({"conv_A": sides[0], "conv_B": sides[1], "conv_A_rating": 1, "conv_B_rating": 0})
        rows[-1]["source"] = "openai/summarize_from_feedback" if number % 2 else "other"
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score(tmp_path / "run", str(tmp_path / "pairs.jsonl"), tmp_path / "scores.jsonl")
    expected = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(expected) == 12
    scorer = open_scorer(tmp_path / "run")
    assert isinstance(scorer, ModelScorer)
    groups = [
        TextGroup((row["conv_A"][0],), (row["conv_A"][1]["content"], row["conv_B"][1]["content"]), row["source"])
        for row in rows
    ]
    for found, wanted in zip(scorer.score(groups), expected, strict=True):
        assert found == pytest.approx([wanted["chosen"], wanted["rejected"]], abs=1e-5)
    assert scorer.truncated
    longer = open_scorer(tmp_path / "run", ScoringOptions(max_length=300))
    longer.score(groups)
    assert isinstance(longer, ModelScorer)
    assert longer.truncated == []
    with pytest.raises(ValueError, match="holds no model"):
        open_scorer(tmp_path / "cache")
