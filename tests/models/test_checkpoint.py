"""Saving and loading reward models."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from grmlight.models import HeadConfig, LoraOptions, RewardModel, Scorer, Signal
from tests.models.groups import mixed_groups
from tests.models.plain import wake_adapters
from tests.reference.packing import pack_groups
from tests.tiny_models import PACKABLE, UNPACKABLE, tiny_reward_model


def score(model: RewardModel) -> torch.Tensor:
    return Scorer(model).score(pack_groups(mixed_groups()))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", PACKABLE + UNPACKABLE)
def test_a_loaded_model_scores_as_the_saved_one(architecture, lora, tmp_path):
    model = tiny_reward_model(architecture, lora)
    wake_adapters(model)
    before = score(model)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(score(model), before)
    loaded = RewardModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(score(loaded), before, rtol=1e-5, atol=1e-5)
    signals = frozenset({Signal.LOGPS})
    batch = pack_groups(mixed_groups())
    torch.testing.assert_close(loaded(batch, signals).logps_N, model(batch, signals).logps_N, rtol=1e-5, atol=1e-5)
    if not lora:
        assert torch.equal(score(loaded), before)


@pytest.mark.parametrize(
    "head", [HeadConfig("linear", dropout=0.2), HeadConfig(layers=2, width=8)], ids=["linear", "deep"]
)
def test_the_folder_has_the_released_models_layout(head, tmp_path):
    model = tiny_reward_model("llama", head=head)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    entries = json.loads((tmp_path / "config.json").read_text())
    assert {name for name in tensors if name.startswith("v_head.")} == {f"v_head.{n}" for n in model.head.state_dict()}
    assert set(tensors) >= {"model.embed_tokens.weight", "lm_head.weight"}
    assert entries["architectures"] == ["LlamaForCausalLM"]
    assert (entries["vhead_layer_type"], entries["vhead_num_layers"]) == (head.kind, head.layers)
    assert entries["vhead_num_neurons"] == head.width
    assert "grmlight" not in (tmp_path / "config.json").read_text()
    loaded = RewardModel.from_pretrained(tmp_path)
    assert loaded.head_config == head
    assert torch.equal(score(loaded), score(model))
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_merged_adapters_leave_no_trace(tmp_path):
    model = tiny_reward_model("llama", lora=True)
    model.save_pretrained(tmp_path)
    assert not any("lora" in name or "base" in name for name in load_file(tmp_path / "model.safetensors"))
    assert not (tmp_path / "adapter_config.json").exists()


def test_recentering_goes_into_the_last_layer(tmp_path):
    model = tiny_reward_model("llama")
    model.reward_shift.fill_(0.7)
    model.reward_scale.fill_(2.5)
    model.save_pretrained(tmp_path)
    loaded = RewardModel.from_pretrained(tmp_path)
    assert (loaded.reward_shift, loaded.reward_scale) == (0, 1)
    torch.testing.assert_close(score(loaded), score(model), rtol=1e-5, atol=1e-5)


def test_the_head_stays_float32_in_a_bfloat16_model(tmp_path):
    model = tiny_reward_model("llama", dtype="bfloat16")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for name, tensor in tensors.items() if name.startswith("v_head.")} == {torch.float32}
    assert tensors["lm_head.weight"].dtype == torch.bfloat16
    assert torch.equal(score(RewardModel.from_pretrained(tmp_path, dtype="bfloat16")), score(model))


def test_small_adapters_of_a_bfloat16_model_are_not_rounded_away(tmp_path):
    model = tiny_reward_model("llama", lora=True, dtype="bfloat16")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(2e-4)
    exact, without = copy.deepcopy(model).float(), tiny_reward_model("llama", lora=True, dtype="bfloat16").float()
    model.save_pretrained(tmp_path)
    moved = (score(exact) - score(without)).abs().max()
    assert moved > 1e-5
    assert (score(RewardModel.from_pretrained(tmp_path)) - score(exact)).abs().max() < 0.01 * moved


def test_training_can_go_on_from_a_folder(tmp_path):
    model = tiny_reward_model("llama")
    model.save_pretrained(tmp_path)
    adapted = RewardModel.from_pretrained(tmp_path, lora=LoraOptions(r=2), packing="never", reference=True)
    assert not adapted.packed
    assert adapted.training
    torch.testing.assert_close(score(adapted), score(model), rtol=1e-5, atol=1e-5)


def test_saving_replaces_what_was_there(tmp_path):
    folder = tmp_path / "model"
    tiny_reward_model("llama").save_pretrained(folder)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    (folder / "notes.txt").write_text("mine")
    model = tiny_reward_model("qwen3", seed=1)
    model.save_pretrained(folder)
    assert torch.equal(score(RewardModel.from_pretrained(folder)), score(model))
    assert (folder / "notes.txt").exists()
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_save_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    model = tiny_reward_model("llama")
    model.save_pretrained(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def fails(*arguments, **options):
        raise OSError("the disk is full")

    monkeypatch.setattr(type(model.lm), "save_pretrained", fails)
    with pytest.raises(OSError, match="full"):
        model.save_pretrained(tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def edit(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda tensors: tensors.pop("v_head.summary.2.bias"), "missing summary.2.bias"),
        (lambda tensors: tensors.update({"v_head.summary.4.bias": torch.zeros(1)}), "unexpected summary.4.bias"),
        (lambda tensors: tensors.update({"v_head.summary.2.bias": torch.zeros(2)}), "summary.2.bias"),
        (lambda tensors: tensors.pop("model.norm.weight"), "missing model.norm.weight"),
        (lambda tensors: tensors.update({"model.extra": torch.zeros(1)}), "unexpected model.extra"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, line, tmp_path):
    tiny_reward_model("llama").save_pretrained(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=line) as raised:
        RewardModel.from_pretrained(tmp_path)
    assert "\n" not in str(raised.value)


def test_folders_that_hold_no_reward_model(tmp_path):
    with pytest.raises(ValueError, match="no directory"):
        RewardModel.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="config.json cannot be read"):
        RewardModel.from_pretrained(tmp_path)
    tiny_reward_model("llama").lm.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no vhead_layer_type"):
        RewardModel.from_pretrained(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="it is a file"):
        tiny_reward_model("llama").save_pretrained(tmp_path / "file")
