"""The same model, reference and pairs through TRL's DPOTrainer: one loss, one gradient."""

import copy
import json

import datasets
import pytest
import torch
from transformers import AutoTokenizer

from grmlight import losses
from grmlight.data import PrepareOptions, prepare
from grmlight.data.loader import GroupLoader
from grmlight.models import BackboneConfig, PolicyModel
from grmlight.policy.alignment import PolicyModule
from grmlight.policy.objectives import AlignmentObjective, Anchor
from tests.test_against_trl import ROWS
from tests.train_run import TINY

trl = pytest.importorskip("trl")

BETA = 0.3


@pytest.fixture
def policy():
    """A tiny policy, away from its reference, with a frozen copy of that."""
    model = PolicyModel(BackboneConfig(name="", pretrained=False, config=TINY), reference=True)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def their_loss(policy, byte_tokenizer, folder, kinds, weights=None):
    """TRL's loss of all rows in one batch, and the model that holds its gradients."""
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    chats = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in ROWS
    ]
    options = trl.DPOConfig(
        str(folder / "trl"), bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none",
        per_device_train_batch_size=3, disable_tqdm=True, loss_type=kinds, loss_weights=weights, beta=BETA,
    )  # fmt: skip
    plain, reference = copy.deepcopy(policy.lm), copy.deepcopy(policy.reference)
    for each in (plain, reference):
        each.set_attn_implementation("eager")
    trainer = trl.DPOTrainer(
        model=plain,
        ref_model=reference,
        args=options,
        train_dataset=datasets.Dataset.from_list(chats),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), plain


def our_batch(byte_tokenizer, folder):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (batch,) = GroupLoader(prepare(str(path), str(byte_tokenizer), PrepareOptions()).store, 3)
    return batch


def assert_same(policy, loss, theirs):
    expected, plain = theirs
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-7)
    for name, parameter in plain.named_parameters():
        ours = policy.lm.get_parameter(name).grad
        torch.testing.assert_close(ours, parameter.grad, rtol=0, atol=1e-5 * float(parameter.grad.abs().max()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "theirs"), [("dpo", "sigmoid"), ("slic", "hinge")])
def test_loss_and_gradients_are_trl_s(kind, theirs, policy, byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    expected = their_loss(policy, byte_tokenizer, tmp_path, [theirs])
    module = PolicyModule(policy.backbone_config, AlignmentObjective(kind, beta=BETA))
    module.model, batch = policy, our_batch(byte_tokenizer, tmp_path)
    loss = module.objective(module(batch, module.signals), batch).loss
    loss.backward()
    assert_same(policy, loss, expected)


@pytest.mark.filterwarnings("ignore")
def test_ipo_is_trl_s_on_token_means(policy, byte_tokenizer, tmp_path, monkeypatch):
    """TRL divides each log-ratio by its response's tokens; the paper's margin, and ours, is of sums."""
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    theirs = their_loss(policy, byte_tokenizer, tmp_path, ["ipo"])
    batch = our_batch(byte_tokenizer, tmp_path)
    module = PolicyModule(policy.backbone_config, "ipo")
    module.model = policy
    outputs = module(batch, module.signals)
    tokens_N = batch.scored_tokens_N()
    sides = [each / tokens_N for each in (outputs.logps_N, outputs.reference_logps_N)]
    margin_C = losses.log_ratio_margin(*(side[index] for side in sides for index in (batch.better_C, batch.worse_C)))
    loss = losses.ipo(margin_C, BETA).mean()
    loss.backward()
    assert_same(policy, loss, theirs)


@pytest.mark.filterwarnings("ignore")
def test_rpo_is_trl_s_dpo_and_sft_but_for_the_mean_over_tokens(policy, byte_tokenizer, tmp_path, monkeypatch):
    """TRL's likelihood is a mean over the batch's chosen tokens, ours one over responses of means over tokens."""
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    theirs = their_loss(policy, byte_tokenizer, tmp_path, ["sigmoid", "sft"], [1.0, 0.5])
    batch = our_batch(byte_tokenizer, tmp_path)
    module = PolicyModule(
        policy.backbone_config,
        AlignmentObjective("rpo", beta=BETA, anchor=Anchor(eta=0.5, reduction="mean", times_beta=False)),
    )
    module.model = policy
    outputs = module(batch, module.signals)
    ours = module.objective(outputs, batch)
    tokens_C = batch.scored_tokens_N()[batch.better_C]
    assert outputs.logps_N is not None
    by_token = -outputs.logps_N[batch.better_C].sum() / tokens_C.sum()
    assert len(set(tokens_C.tolist())) > 1
    loss = ours.loss + 0.5 * (by_token - (-outputs.logps_N[batch.better_C] / tokens_C).mean())
    loss.backward()
    assert_same(policy, loss, theirs)
