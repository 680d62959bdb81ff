"""Training goes on from a reward model of any layout, with its head."""

import json
import logging

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from transformers import AutoTokenizer

from grmlight import PairDataModule, PrepareOptions, RewardModule
from grmlight.convert import convert
from grmlight.export import SaveModel
from grmlight.models import BackboneConfig, EnsembleConfig, HeadConfig, LoraOptions, Scorer, load_reward_model
from grmlight.regularizers import TextGeneration
from grmlight.training.checkpoints import Checkpoints
from tests import interop
from tests.models import twins

pytest.importorskip("trl")

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Total length of `list`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]

LAYOUTS = ("grm", "authors-lora", "classifier", "openrlhf", "adapter")


@pytest.fixture(autouse=True)
def _caches(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture
def folder(layout, byte_tokenizer, tmp_path):
    """A reward model of each layout."""
    out, base = tmp_path / layout, tmp_path / "lm"
    twins.base_lm(base, byte_tokenizer)
    if layout == "grm":
        twins.grm(out, byte_tokenizer)
    elif layout == "authors-lora":
        twins.grm_lora(out, base, byte_tokenizer)
    elif layout == "openrlhf":
        twins.openrlhf(out, byte_tokenizer, normalize=True)
    else:
        twins.grm_lora(tmp_path / "source", base, byte_tokenizer)
        convert(tmp_path / "source", tmp_path / "linear", "classifier", interop.pairs_file(tmp_path, 40))
        if layout == "classifier":
            return tmp_path / "linear"
        convert(tmp_path / "source", out, "adapter")
    return out


def fit(folder, tokenizer, work, lr, callbacks=(), ckpt=None, steps=2, **module):
    data = PairDataModule(
        train=interop.pairs_file(work, 12), tokenizer=str(tokenizer), pairs_per_step=4,
        prepare=PrepareOptions(paper_text=True),
    )  # fmt: skip
    made = RewardModule(
        **{"backbone": str(folder), "head": "keep", "optimizer": lambda p: torch.optim.SGD(p, lr=lr), **module}
    )
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=CSVLogger(work, name="run", version=0 if ckpt is None else 1),
        callbacks=[SaveModel(), Checkpoints(work / "checkpoints", every_n_train_steps=1, save_last=True), *callbacks],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(made, data, ckpt_path=ckpt)
    return made


def test_a_step_of_nothing_leaves_every_reward_as_it_was(folder, layout, byte_tokenizer, tmp_path):
    before = interop.grmlight_scores_of(folder, tmp_path)
    module = fit(folder, byte_tokenizer, tmp_path, lr=0.0)
    batch = interop.chat_batch(byte_tokenizer, tmp_path)
    torch.testing.assert_close(Scorer(module.model).score(batch), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        Scorer(load_reward_model(tmp_path / "run/version_0/model")).score(batch), before, rtol=1e-5, atol=1e-5
    )
    has_adapters = layout in ("authors-lora", "adapter")
    assert (module.model.backbone_config.lora is not None) == has_adapters
    assert any("lora" in name for name, _ in module.model.named_parameters()) == has_adapters


def test_head_and_backbone_learn_and_the_checkpoint_has_both(folder, layout, byte_tokenizer, tmp_path):
    start = load_reward_model(folder)
    module = fit(folder, byte_tokenizer, tmp_path, lr=0.5)
    learned = dict(module.model.named_parameters())
    moved = {name for name, parameter in start.named_parameters() if not torch.equal(parameter, learned[name])}
    assert any(name.startswith("head.") for name in moved)
    assert any("q_proj" in name for name in moved)
    batch = interop.chat_batch(byte_tokenizer, tmp_path)
    after = Scorer(module.model).score(batch)
    convert(tmp_path / "checkpoints/last.ckpt", tmp_path / "exported", "grm")
    torch.testing.assert_close(
        Scorer(load_reward_model(tmp_path / "exported")).score(batch), after, rtol=1e-5, atol=1e-5
    )
    # And a run goes on from its own checkpoint.
    again = fit(folder, byte_tokenizer, tmp_path, lr=0.5, ckpt=tmp_path / "checkpoints/last.ckpt", steps=3)
    assert again.trainer.global_step == 3


def test_new_adapters_on_a_whole_model_begin_where_it_is(byte_tokenizer, tmp_path):
    twins.grm(tmp_path / "grm", byte_tokenizer)
    before = interop.grmlight_scores_of(tmp_path / "grm", tmp_path)
    backbone = BackboneConfig(name=str(tmp_path / "grm"), lora=LoraOptions(r=2))
    module = fit("", byte_tokenizer, tmp_path, lr=0.0, backbone=backbone)
    found = Scorer(module.model).score(interop.chat_batch(byte_tokenizer, tmp_path))
    torch.testing.assert_close(found, before, rtol=1e-5, atol=1e-5)


def test_a_classifier_has_no_text_generation(byte_tokenizer, tmp_path):
    twins.openrlhf(tmp_path / "rm", byte_tokenizer)
    with pytest.raises(ValueError, match="came as a sequence classifier, without an LM head"):
        fit(tmp_path / "rm", byte_tokenizer, tmp_path, lr=0.0, callbacks=[TextGeneration(0.1)])


def test_other_text_than_the_authors_is_warned_of(byte_tokenizer, tmp_path, caplog):
    twins.grm(tmp_path / "grm", byte_tokenizer)
    with caplog.at_level(logging.WARNING, "grmlight"):
        fit(tmp_path / "grm", byte_tokenizer, tmp_path, lr=0.0)
        assert "paper_text" not in caplog.text
        data = PairDataModule(train=interop.pairs_file(tmp_path, 12), tokenizer=str(byte_tokenizer))
        module = RewardModule(backbone=str(tmp_path / "grm"), head="keep")
        trainer = L.Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, data)
    assert "paper_text is off" in caplog.text


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (BackboneConfig(name="", pretrained=False, config={"model_type": "llama"}), "as it is; leave out"),
        (BackboneConfig(name="x/y", revision="main"), "as it is; leave out"),
        ("some/model", "needs a folder, and 'some/model' is none; download"),
    ],
)
def test_what_cannot_go_on_is_one_line(backbone, message):
    with pytest.raises(ValueError, match=message) as caught:
        RewardModule(backbone=backbone, head="keep")
    assert "\n" not in str(caught.value)


def test_an_adapter_whose_padding_lies_outside_its_base_s_vocabulary_goes_on(byte_tokenizer, tmp_path):
    """A pad token that was added for a classifier's batches: nothing here ever looks it up."""
    twins.base_lm(tmp_path / "lm", byte_tokenizer)
    twins.grm_lora(tmp_path / "lora", tmp_path / "lm", byte_tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    tokenizer.add_tokens([f"word{n}" for n in range(twins.VOCABULARY - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "<|added_pad|>"})
    assert tokenizer.pad_token_id == twins.VOCABULARY
    tokenizer.save_pretrained(tmp_path / "lora")
    fit(tmp_path / "lora", tmp_path / "lora", tmp_path, lr=0.5)
    tokenizer.chat_template += "<|added_pad|>"
    tokenizer.save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="has a token 320 and the model a vocabulary of 320"):
        fit(tmp_path / "lora", tmp_path / "lora", tmp_path, lr=0.5)


def test_a_plain_model_has_no_head_to_keep(byte_tokenizer, tmp_path):
    twins.base_lm(tmp_path / "lm", byte_tokenizer)
    with pytest.raises(ValueError, match="no reward model: its weights hold neither"):
        RewardModule(backbone=str(tmp_path / "lm"), head="keep")
    assert RewardModule(backbone=str(tmp_path / "lm"), head="linear").head == HeadConfig(kind="linear")
    assert json.loads((tmp_path / "lm/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_an_ensemble_does_not_go_on_from_one_model(byte_tokenizer, tmp_path):
    twins.grm(tmp_path / "grm", byte_tokenizer)
    with pytest.raises(ValueError, match="drop ensemble or head: keep"):
        RewardModule(str(tmp_path / "grm"), head="keep", ensemble=EnsembleConfig(2, "heads"))
