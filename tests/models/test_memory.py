"""The memory estimate against a model that was really built."""

import pytest

from grmlight.models import BackboneConfig, training_memory
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
