"""The gate lets through what packs, and nothing else."""

from __future__ import annotations

import dataclasses
import logging
import random

import pytest
import torch
from transformers import CONFIG_MAPPING, LlamaForCausalLM

from grmlight.models import BackboneConfig, RewardModel, Signal, gate, packs, read_config
from grmlight.models.padded import padded_states
from tests.reference.packing import pack_groups
from tests.tiny_models import PACKABLE, UNPACKABLE, tiny_backbone, tiny_reward_model

NEVER = {
    "bloom": "its attention cannot be exchanged",
    "mpt": "its attention cannot be exchanged",
    "falcon": "its attention cannot be exchanged",
    "gptj": "its attention cannot be exchanged",
    "codegen": "no small twin of it can be built and run: RuntimeError",
    "bart": "a pack and its sequences one by one differ",
    "llama4_text": "it has layers of kind chunked_attention",
    "lfm2_moe": "no small twin of it",
    "mamba": "it has layers of kind linear_attention",
    "diffllama": "8 of its 4 layers use exchangeable attention",
}


def full_size(model_type: str, **entries):
    """A config of the size that transformers makes by default."""
    return CONFIG_MAPPING[model_type](**entries)


@pytest.mark.parametrize("architecture", PACKABLE)
def test_tiny_models_that_pack(architecture):
    result = packs(read_config(tiny_backbone(architecture)))
    assert result == gate.GateResult(ok=True, logps=True)


@pytest.mark.parametrize(
    "model_type",
    "llama gemma gemma2 gemma3 gemma3n_text mistral qwen2 qwen3 phi3 olmo2 stablelm gpt_oss deepseek_v3".split(),
)
def test_models_of_full_size_are_probed_on_a_small_twin(model_type):
    config = full_size(model_type)
    twin = gate.shrink(config)
    assert twin.get_text_config().num_hidden_layers <= 10
    assert twin.get_text_config().vocab_size <= 128
    assert packs(config).ok


@pytest.mark.parametrize(("model_type", "reason"), NEVER.items(), ids=NEVER)
def test_models_that_do_not_pack(model_type, reason):
    result = packs(full_size(model_type))
    assert not result.ok
    assert result.reason.startswith(reason)
    assert "\n" not in result.reason
    assert result.logps is not False


def test_kinds_of_layers_that_do_not_pack_are_named():
    config = read_config(tiny_backbone("qwen3"))
    config.layer_types = ["full_attention", "chunked_attention"]
    assert packs(config).reason == "it has layers of kind chunked_attention"


def test_a_twin_keeps_every_kind_of_layer():
    config = full_size("gemma3_text")
    twin = gate.shrink(config)
    assert set(twin.layer_types) == set(config.layer_types) == {"full_attention", "sliding_attention"}
    assert len(twin.layer_types) == twin.num_hidden_layers < config.num_hidden_layers
    assert twin.sliding_window < 8


def test_a_wrong_attention_is_caught(monkeypatch):
    def forgets_the_prompt(module, query, key, value, attention_mask, **terms):
        gate._calls.get().append(module)
        alone = attention_mask.clone()
        alone[..., 2] = -1
        return gate.packed_attention(module, query, key, value, alone, **terms)

    monkeypatch.setitem(gate.AttentionInterface._global_mapping, gate._COUNTED, forgets_the_prompt)
    gate._packs.cache_clear()
    result = packs(read_config(tiny_backbone("llama")))
    gate._packs.cache_clear()
    assert result.reason == "a pack and its sequences one by one differ"


@pytest.mark.parametrize(
    ("architecture", "term"), [("mistral", "sliding_window"), ("gemma2", "softcap"), ("gpt_oss", "s_aux")]
)
def test_an_attention_that_drops_a_term_is_caught(monkeypatch, architecture, term):
    def drops(module, *states, **terms):
        gate._calls.get().append(module)
        return gate.packed_attention(module, *states, **{**terms, term: None})

    monkeypatch.setitem(gate.AttentionInterface._global_mapping, gate._COUNTED, drops)
    gate._packs.cache_clear()
    result = packs(full_size(architecture))
    gate._packs.cache_clear()
    assert result.reason == "a pack and its sequences one by one differ"


@pytest.mark.parametrize("architecture", [*UNPACKABLE, "llama"])
def test_models_that_pad(architecture):
    assert gate.pads(read_config(tiny_backbone(architecture))) == ""


def test_a_model_that_can_be_neither_packed_nor_padded_is_refused():
    """CPM-Ant makes its own mask, from ids: padding changes what its tokens see."""
    config = full_size("cpmant", hidden_size=32, num_attention_heads=2, dim_head=16, dim_ff=32, num_hidden_layers=1)
    assert not packs(config).ok
    assert gate.pads(config) == "padded rows and their sequences one by one differ"
    entries = {"hidden_size": 32, "num_attention_heads": 2, "dim_head": 16, "dim_ff": 32, "num_hidden_layers": 1}
    for packing in ("auto", "never"):
        with pytest.raises(ValueError, match="neither packed nor padded"):
            RewardModel(
                BackboneConfig("", pretrained=False, config={"model_type": "cpmant", **entries}), packing=packing
            )


def test_wrong_padding_is_caught_on_the_model_itself_where_no_twin_can_be_built(monkeypatch):
    def fails(config):
        raise AttributeError("no heads")

    def wrong(decoder, batch):
        states = padded_states(decoder, batch)
        return dataclasses.replace(states, states_RH=states.states_RH.roll(1, 0))

    monkeypatch.setattr(gate, "shrink", fails)
    monkeypatch.setattr(gate, "padded_states", wrong)
    gate._packs.cache_clear()
    gate._pads.cache_clear()
    with pytest.raises(ValueError, match="neither packed nor padded") as caught:
        tiny_reward_model("llama")
    gate._packs.cache_clear()
    gate._pads.cache_clear()
    assert "\n" not in str(caught.value)


def test_log_probs_of_a_model_that_reads_ahead_are_not_known():
    ahead = packs(full_size("gemma3_text", use_bidirectional_attention=True))
    assert not ahead.ok
    assert ahead.logps is False


def test_the_callers_generators_are_left_alone():
    gate._packs.cache_clear()
    torch.manual_seed(3)
    random.seed(3)
    before, state = torch.get_rng_state(), random.getstate()
    tiny_reward_model("gemma2", lora=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == state


def test_one_visible_line_for_a_model_that_is_padded(caplog):
    with caplog.at_level(logging.WARNING, logger="grmlight"):
        model = tiny_reward_model("bloom")
    assert not model.packed
    (record,) = caplog.records
    assert record.name == "grmlight"
    assert "bloom" in record.getMessage()
    assert "padding" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_padding_on_request_says_nothing(caplog):
    with caplog.at_level(logging.WARNING, logger="grmlight"):
        assert not tiny_reward_model("llama", packing="never").packed
    assert not caplog.records


def test_packed_attention_refuses_a_plain_call():
    model = tiny_reward_model("llama")
    with pytest.raises(ValueError, match="needs a pack's layout"):
        model.lm(input_ids=torch.tensor([[1, 2, 3]]))


def test_log_probs_of_an_unknown_kind_are_refused(monkeypatch):
    original = LlamaForCausalLM.forward

    def doubled(self, *arguments, **options):
        output = original(self, *arguments, **options)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", doubled)
    gate._packs.cache_clear()
    model = tiny_reward_model("llama")
    gate._packs.cache_clear()
    batch = pack_groups([[[4, 5, 6], [4, 7]]])
    assert model(batch).rewards_N.isfinite().all()
    for signal in (Signal.LOGPS, Signal.CHOSEN_LOGPS, Signal.REFERENCE_LOGPS):
        with pytest.raises(ValueError, match="does not know"):
            model(batch, frozenset({signal}))


def test_a_model_without_a_twin_is_padded_and_its_own_lm_head_is_checked(monkeypatch, caplog):
    def fails(config):
        raise AttributeError("no heads")

    monkeypatch.setattr(gate, "shrink", fails)
    gate._packs.cache_clear()
    with caplog.at_level(logging.WARNING, logger="grmlight"):
        model = tiny_reward_model("llama")
    gate._packs.cache_clear()
    assert not model.packed
    assert "no small twin" in caplog.text
    assert model(pack_groups([[[4, 5, 6], [4, 7]]]), frozenset({Signal.LOGPS})).logps_N.isfinite().all()


def test_wrong_packing_choice():
    with pytest.raises(ValueError, match="packing must be"):
        RewardModel(tiny_backbone(), packing="sometimes")
