"""The same model and pairs through TRL's RewardTrainer: one loss, one gradient."""

import json

import datasets
import pytest
import torch
from transformers import AutoTokenizer, LlamaForSequenceClassification

from grmlight.data import PrepareOptions, prepare
from grmlight.data.loader import GroupLoader
from grmlight.losses import centering, preference_loss
from grmlight.models import BackboneConfig, HeadConfig, RewardModel
from tests.train_run import TINY

trl = pytest.importorskip("trl")

ROWS = [
    {"prompt": "why is the red house green", "chosen": "it was not so", "rejected": "the dog said that", "margin": 0.5},
    {"prompt": "and the cat", "chosen": "the cat and the dog said that it was not so", "rejected": "no", "margin": 1.5},
    {"prompt": "who", "chosen": "a", "rejected": "the house is red and green and not so", "margin": 0.0},
]


@pytest.fixture
def classifier(tmp_path):
    """Our tiny model, and transformers' classifier with the same weights: a linear head without its bias."""
    ours = RewardModel(BackboneConfig(name="", pretrained=False, config=TINY), HeadConfig(kind="linear", dropout=0.0))
    config = ours.lm.config.__class__(**{**ours.lm.config.to_dict(), "num_labels": 1, "pad_token_id": 0})
    theirs = LlamaForSequenceClassification(config)
    theirs.model.load_state_dict(ours.lm.model.state_dict())
    with torch.no_grad():
        theirs.score.weight.copy_(ours.head.summary.weight)
        ours.head.summary.bias.zero_()
    return ours, theirs


@pytest.fixture
def trainer(classifier, byte_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    chats = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
            "margin": row["margin"],
        }
        for row in ROWS
    ]
    options = trl.RewardConfig(
        str(tmp_path / "trl"), bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none",
        center_rewards_coefficient=0.01, per_device_train_batch_size=3, disable_tqdm=True,
    )  # fmt: skip
    return trl.RewardTrainer(
        model=classifier[1], args=options, train_dataset=datasets.Dataset.from_list(chats), processing_class=tokenizer
    )


@pytest.mark.filterwarnings("ignore")
def test_loss_and_gradients_are_trl_s(classifier, trainer, byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    ours, theirs = classifier
    batch_of_theirs = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    their_loss = trainer.compute_loss(theirs, batch_of_theirs)
    their_loss.backward()

    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (batch,) = GroupLoader(prepare(str(path), str(byte_tokenizer), PrepareOptions()).store, 3)
    rewards_N = ours(batch).rewards_N
    better_C, worse_C = rewards_N[batch.better_C], rewards_N[batch.worse_C]
    loss = (preference_loss(better_C, worse_C, margin_C=batch.margin_C) + 0.01 * centering(better_C, worse_C)).mean()
    loss.backward()

    torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=1e-7)
    for name, parameter in theirs.model.named_parameters():
        ours_of_it = ours.lm.model.get_parameter(name).grad
        torch.testing.assert_close(ours_of_it, parameter.grad, rtol=0, atol=1e-5 * float(parameter.grad.abs().max()))
    torch.testing.assert_close(ours.head.summary.weight.grad, theirs.score.weight.grad, rtol=1e-4, atol=1e-6)
