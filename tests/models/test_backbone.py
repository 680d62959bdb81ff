"""Loading backbones: strict, seeded, with one line for whatever is wrong."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from grmlight.data.names import resolve
from grmlight.models import BackboneConfig, LoraOptions, RewardModel, load_backbone, read_config
from tests.tiny_models import tiny_backbone, tiny_reward_model


@pytest.fixture
def folder(tmp_path):
    """A saved tiny LM without a reward head."""
    options = tiny_backbone("llama")
    load_backbone(options, read_config(options), seed=3).save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def load(options: BackboneConfig):
    return load_backbone(options, read_config(options))


def refused(options: BackboneConfig) -> str:
    with pytest.raises(ValueError, match="backbone|lora") as raised:
        load(options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_directory(folder):
    lm = load(BackboneConfig(str(folder)))
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in lm.state_dict().items())
    assert lm.training
    assert all(p.requires_grad for p in lm.parameters())


def test_a_place_inside_a_package(folder, monkeypatch):
    package = folder.parent / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    folder.rename(package / "lm")
    monkeypatch.syspath_prepend(str(folder.parent))
    assert resolve("package:some_package/lm", "backbone") == str(package / "lm")
    load(BackboneConfig("package:some_package/lm"))
    sys.modules.pop("some_package", None)
    with pytest.raises(ValueError, match="no directory"):
        resolve("package:some_package/nothing", "backbone")
    with pytest.raises(ValueError, match="no package 'no_such_package'"):
        resolve("package:no_such_package/lm", "backbone")


def test_random_weights_depend_on_the_seed_alone():
    options = tiny_backbone("llama", lora=True)
    models = []
    for seed, state in [(1, 5), (1, 6), (2, 5)]:
        torch.manual_seed(state)
        models.append(load_backbone(options, read_config(options), seed=seed).state_dict())
    first, again, other = models
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first if "norm" not in name)


def test_a_config_from_a_directory_with_random_weights(folder):
    lm = load(BackboneConfig(str(folder), pretrained=False, config={"num_hidden_layers": 3}))
    assert len(lm.model.layers) == 3


def test_missing_tensors_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "missing model.layers.1.mlp.up_proj.weight" in refused(BackboneConfig(str(folder)))


def test_unexpected_tensors_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["v_head.summary.weight"] = torch.zeros(1, 32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "unexpected v_head.summary.weight" in refused(BackboneConfig(str(folder)))


def test_tensors_of_another_shape_are_refused(folder):
    line = refused(BackboneConfig(str(folder), config={"intermediate_size": 40}))
    assert "of another shape model.layers.0.mlp.down_proj.weight" in line
    assert "missing" not in line


def test_a_tied_head_need_not_be_stored(tmp_path):
    options = tiny_backbone("qwen3")
    load(options).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    lm = load(BackboneConfig(str(tmp_path)))
    assert lm.lm_head.weight is lm.model.embed_tokens.weight


def test_weights_that_are_pickles_are_not_read(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refused(BackboneConfig(str(folder)))


def test_nothing_there(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "no directory" in refused(BackboneConfig(str(tmp_path / "nowhere")))
    assert "no directory" in refused(BackboneConfig("./nowhere"))
    (tmp_path / "empty").mkdir()
    assert "cannot be read" in refused(BackboneConfig(str(tmp_path / "empty")))
    (folder / "model.safetensors").unlink()
    assert "cannot be read" in refused(BackboneConfig(str(folder)))


def test_a_hub_model_that_cannot_be_reached(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = refused(BackboneConfig("some-name/no-such-model"))
    assert "some-name/no-such-model" in line
    assert "directory" in line


def test_unknown_model_type(folder):
    entries = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(entries | {"model_type": "mystery", "auto_map": {}}))
    assert "no model_type 'mystery'" in refused(BackboneConfig(str(folder)))


def test_unknown_and_wrong_config_entries():
    assert "hiden_size" in refused(tiny_backbone(config={"hiden_size": 8}))
    assert "llama" in refused(tiny_backbone(config={"hidden_size": "large"}))
    assert "llama" in refused(tiny_backbone(config={"num_attention_heads": 5}))


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": "", "pretrained": False, "config": {"hidden_size": 8}},
        {"name": "x", "frozen": True, "lora": LoraOptions()},
        {"name": "x", "dtype": "float16"},
    ],
)
def test_options_that_contradict(options):
    with pytest.raises(ValueError, match="backbone"):
        BackboneConfig(**options)


def test_lora_targets_that_the_model_does_not_have():
    wrong = LoraOptions(targets=("q_proj", "query"))
    line = refused(BackboneConfig("", pretrained=False, config=tiny_backbone().config, lora=wrong))
    assert "'query'" in line
    assert "q_proj" in line
    assert "lm_head" not in line


def test_lora_never_reaches_the_lm_head():
    wrong = LoraOptions(targets=("lm_head",))
    assert "lm_head" in refused(BackboneConfig("", pretrained=False, config=tiny_backbone().config, lora=wrong))


def test_what_is_trained():
    def trained(**options) -> set[str]:
        model = tiny_reward_model("llama", **options)
        return {name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("head.")}

    assert trained() == {name for name, _ in tiny_reward_model("llama").named_parameters() if name[:5] != "head."}
    assert trained(frozen=True) == set()
    lora = trained(lora=True)
    assert lora
    assert all("lora_" in name for name in lora)


def test_the_language_head_is_frozen_when_nothing_reads_it():
    model = tiny_reward_model("llama")
    model.train_language_head(False)
    assert not model.lm.lm_head.weight.requires_grad
    model.train_language_head(True)
    assert model.lm.lm_head.weight.requires_grad
    tied = tiny_reward_model("qwen3")
    tied.train_language_head(False)
    assert tied.lm.lm_head.weight.requires_grad
    frozen = tiny_reward_model("llama", frozen=True)
    frozen.train_language_head(True)
    assert not frozen.lm.lm_head.weight.requires_grad


def test_a_model_is_in_training_mode(folder):
    model = RewardModel(BackboneConfig(str(folder)))
    assert all(part.training for part in model.modules())
