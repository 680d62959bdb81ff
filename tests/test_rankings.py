"""Rankings, ties and soft labels in the one preference loss: a group against its pairs, one at a time."""

import copy
import itertools
import json
import math

import pytest
import torch
from transformers import AutoTokenizer

from grmlight import RewardModule
from grmlight.data import GroupLoader, PrepareOptions, prepare
from grmlight.data.prepare import Prepared
from grmlight.evaluation import bag_of_words_accuracy
from grmlight.models import HeadConfig
from tests.conftest import CHAT_TEMPLATE
from tests.models.plain import assert_same_gradients
from tests.tiny_models import tiny_backbone, tiny_reward_model

RANKINGS = [
    {"prompt": "why is the house red", "responses": ["so", "not so", "it was", "the dog"], "ratings": [1, 4, 4, 2.5]},
    {"prompt": "and the cat", "responses": ["no", "the cat and the dog", "yes"], "ranks": [3, 1, 2], "weight": 0.5},
    {"prompt": "who", "chosen": "the dog said", "rejected": "green", "soft_label": 0.8, "margin": 1.5},
    {"prompt": "what", "responses": ["red", "green"], "ratings": [2, 2], "soft_label": 0.9},
]


@pytest.fixture
def ready(byte_tokenizer, tmp_path, monkeypatch):
    """Prepare rows with a real tokenizer."""
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))

    def run(rows, name="rows.jsonl", **options) -> Prepared:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return prepare(str(tmp_path / name), str(byte_tokenizer), PrepareOptions(**options))

    return run


@pytest.fixture(scope="module")
def model():
    return tiny_reward_model("llama", config={"vocab_size": 320})


def pairs_of(row, keep):
    """Better, worse, label, margin and weight of each comparison, by the definition."""
    weight, label = row.get("weight", 1.0), row.get("soft_label", 1.0)
    if "chosen" in row:
        return [(row["chosen"], row["rejected"], label, row["margin"], weight)]
    scores = row.get("ratings") or [-rank for rank in row["ranks"]]
    found = []
    for (left, a), (right, b) in itertools.combinations(zip(row["responses"], scores, strict=True), 2):
        if a == b:
            found += [(left, right, 0.5, 0.0, weight)] * keep
        else:
            margin = abs(a - b) if "ratings" in row else 0.0
            found.append((left, right, label, margin, weight) if a > b else (right, left, label, margin, weight))
    return found


def reward(model, tokenizer, prompt, response):
    """Alone, by plain transformers, in float64."""
    text = CHAT_TEMPLATE.split("{% if")[0]
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    ids = tokenizer(
        tokenizer.apply_chat_template(turns, chat_template=text, tokenize=False), return_tensors="pt"
    ).input_ids
    states = model.lm.model(input_ids=ids, use_cache=False).last_hidden_state
    return float(model.head(states[:, -1])[0])


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("use_margin", "smoothing"), [(False, 0.0), (True, 0.0), (False, 0.1)])
def test_the_loss_of_a_group_is_the_mean_over_its_pairs(ready, model, byte_tokenizer, keep, use_margin, smoothing):
    rows = RANKINGS if keep else RANKINGS[:3]
    (batch,) = GroupLoader(ready(rows, on_tie="keep" if keep else "drop").store, len(rows))
    module = RewardModule(tiny_backbone(), use_margin=use_margin, label_smoothing=smoothing)
    found = module.preference(model.eval()(batch), batch)
    slow = copy.deepcopy(model).double().eval()
    slow.lm.set_attn_implementation("eager")
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    for row, value in zip(rows, found.tolist(), strict=True):
        losses = []
        for better, worse, label, margin, weight in pairs_of(row, keep):
            with torch.no_grad():
                sides = [reward(slow, tokenizer, row["prompt"], response) for response in (better, worse)]
            difference = sides[0] - sides[1] - margin * use_margin
            smooth = label * (1 - smoothing) + (1 - label) * smoothing
            losses.append(-weight * (smooth * log_sigmoid(difference) + (1 - smooth) * log_sigmoid(-difference)))
        assert value == pytest.approx(sum(losses) / len(losses), abs=2e-5)


def test_a_ranking_has_the_gradient_of_its_pairs_at_less_tokens(ready, model):
    """Bradley-Terry over all pairs, not Plackett-Luce."""
    ranking = {
        "prompt": "why is the house red " * 5,
        "responses": ["so", "not so", "it was", "no"],
        "ranks": [2, 1, 4, 3],
    }
    pairs = [
        {"prompt": ranking["prompt"], "chosen": better, "rejected": worse}
        for better, worse, *_ in pairs_of(ranking, keep=False)
    ]
    assert len(pairs) == 6
    module, gradients, tokens = RewardModule(tiny_backbone()), [], []
    for rows, name in (([ranking], "ranking.jsonl"), (pairs, "pairs.jsonl")):
        (batch,) = GroupLoader(ready(rows, name).store, len(rows))
        assert batch.paired == (len(rows) > 1)
        learner = copy.deepcopy(model)
        module.preference(learner(batch), batch).mean().backward()
        gradients.append(learner)
        tokens.append(len(batch.input_ids_T))
    assert_same_gradients(*gradients)
    assert tokens[0] * 3 < tokens[1]


def test_a_bag_of_words_reads_rankings_as_their_pairs(ready):
    rows = [row for row in RANKINGS if "responses" in row] * 3
    pairs = [
        {"prompt": row["prompt"], "chosen": better, "rejected": worse, "soft_label": label}
        for row in rows
        for better, worse, label, *_ in pairs_of(row, keep=True)
    ]
    ranked, paired = (ready(each, f"{i}.jsonl", on_tie="keep").store for i, each in enumerate((rows, pairs)))
    assert bag_of_words_accuracy(ranked, ranked) == bag_of_words_accuracy(paired, paired) > 0.5


def test_a_run_on_rankings_reports_every_comparison(ready, byte_tokenizer, tmp_path):
    import lightning.pytorch as L
    from lightning.pytorch.loggers import CSVLogger

    from grmlight import PairDataModule
    from grmlight.evaluation import RunReport

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RANKINGS * 2))
    data = PairDataModule(
        str(tmp_path / "rows.jsonl"),
        str(tmp_path / "rows.jsonl"),
        tokenizer=str(byte_tokenizer),
        prepare=PrepareOptions(on_tie="keep"),
        pairs_per_step=4,
    )
    module = RewardModule(tiny_backbone(config={"vocab_size": 320}), HeadConfig(width=16))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=CSVLogger(tmp_path, "run"),
        callbacks=[RunReport()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, data)
    run = tmp_path / "run/version_0"
    found = json.loads((run / "results.json").read_text())["val"]
    assert (found["pairs"], found["groups"]) == (18.0, 6.0)
    assert "bag_of_words" in found
    report = json.loads((run / "data.json").read_text())["train"]
    assert (report["used"], report["comparisons"], report["ties"]) == (8, 22, 4)
    assert report["noted"] == {"duplicate": [5, 6, 7, 8]}
