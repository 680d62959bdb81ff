"""The memory estimate against a model that was really built."""

import dataclasses

import pytest
import torch

from grmlight.models import BackboneConfig, EnsembleConfig, ExpertsConfig, ExpertsModel, training_memory
from grmlight.models.memory import Setting, memory_advice, memory_errors
from tests.tiny_models import PACKABLE, tiny_backbone, tiny_reward_model


@pytest.mark.parametrize("name", PACKABLE)
@pytest.mark.parametrize("lora", [False, True])
def test_the_counts_are_those_of_the_model(name, lora):
    found = training_memory(tiny_backbone(name, lora=lora))
    backbone = tiny_reward_model(name, lora=lora).backbone
    assert found.trainable == sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert found.parameters + (found.trainable if lora else 0) == sum(p.numel() for p in backbone.parameters())


def test_eight_billion_parameters_in_full_are_128_gigabytes():
    """Llama-3-8B's published sizes, as configs/llama3-8b-full.yaml trains it."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    config = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8} | sizes
    found = training_memory(BackboneConfig(name="", pretrained=False, config=config))
    assert found.parameters == 8_030_261_248
    assert found.state_bytes == 16 * found.parameters
    assert "take 128 GB, activations aside: at least 2 GPUs of 80 GB; 16.1 GB on each of 8" in found.describe(8)


SETTING = Setting(accumulate=2, pairs=8, bf16=False, sharded=False, longest=3000, device_bytes=80 * 10**9, devices=1)


def named(advice):
    return [text.split(" ")[0].rstrip(":") for text in advice]


def test_advice_begins_with_what_helps_most():
    small = named(memory_advice(tiny_backbone(), SETTING))
    assert small == [
        "trainer.accumulate_grad_batches",
        "backbone.gradient_checkpointing",
        "trainer.precision",
        "data.init_args.prepare.max_length",
        "backbone.lora",
        "configs/fsdp.yaml",
    ]
    large = named(memory_advice(tiny_backbone(), dataclasses.replace(SETTING, device_bytes=1)))
    assert large == small[-2:] + small[:-2]


@pytest.mark.parametrize(("ensemble", "adapters"), [(EnsembleConfig(3, "models"), 1), (None, 9)])
def test_advice_counts_every_backbone_and_every_set_of_adapters(ensemble, adapters):
    """One of them fits in half of the memory, all of them do not; so what makes them smaller comes first."""
    backbone = tiny_backbone(lora=ensemble is None, dtype="bfloat16" if ensemble is None else "float32")
    one, all_of_them = (training_memory(backbone, *given).state_bytes for given in ((), (ensemble, adapters)))
    setting = dataclasses.replace(SETTING, device_bytes=int(max(1.3 * one, 1.05 * all_of_them)))
    assert one < 0.8 * setting.device_bytes < all_of_them
    alone, together = memory_advice(backbone, setting), memory_advice(backbone, setting, ensemble, adapters)
    assert named(alone)[0] == "trainer.accumulate_grad_batches"
    assert named(together)[0] == ("ensemble.members" if ensemble else "configs/fsdp.yaml")


def test_the_memory_of_experts_is_that_of_all_their_adapters():
    backbone = tiny_backbone(lora=True)
    model = ExpertsModel(backbone, ExpertsConfig({"a": ["x", "y"], "b": ["z"]}))
    adapters = sum(each.numel() for name, each in model.named_parameters() if ".adapters." in name)
    assert training_memory(backbone, adapters=2 + 3).trainable == adapters


def test_advice_names_only_what_is_not_in_use():
    backbone = tiny_backbone(lora=True, gradient_checkpointing=True)
    setting = dataclasses.replace(SETTING, pairs=1, bf16=True, sharded=True, longest=None)
    assert named(memory_advice(backbone, setting)) == ["backbone.dtype"]
    assert memory_advice(dataclasses.replace(backbone, dtype="bfloat16"), setting) == []


def test_an_allocation_that_fails_is_one_line_and_other_errors_pass():
    with pytest.raises(ValueError, match=r"^out of memory: do this$"), memory_errors(lambda: ": do this"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="inconsistent"), memory_errors(lambda: ""):
        torch.zeros(2) @ torch.zeros(3)
