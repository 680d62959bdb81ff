"""The gate lets through what packs, and nothing else."""

from __future__ import annotations

import logging
import random

import pytest
import torch
from transformers import CONFIG_MAPPING, LlamaForCausalLM

from grmlight.data.batch import Layout
from grmlight.models import RewardModel, Signal, gate, packs, read_config
from tests.reference.packing import pack_groups
from tests.tiny_models import PACKABLE, tiny_backbone, tiny_reward_model

NEVER = {
    "bloom": "0 of its 2 layers use exchangeable attention",
    "mpt": "",
    "falcon": "its attention cannot be exchanged",
    "gptj": "its attention cannot be exchanged",
    "codegen": "",
    "stablelm": "it does not hand a pack's layout down to its attention",
    "gpt_oss": "GptOssAttention adds s_aux to its attention, which packing does not know",
    "llama4_text": "it has layers of kind chunked_attention",
}


def full_size(model_type: str, **entries):
    """A config of the size that transformers makes by default."""
    return CONFIG_MAPPING[model_type](**entries)


@pytest.mark.parametrize("architecture", PACKABLE)
def test_tiny_models_that_pack(architecture):
    result = packs(read_config(tiny_backbone(architecture)))
    assert result == gate.GateResult(ok=True, logps=True)


@pytest.mark.parametrize("model_type", ["llama", "gemma", "gemma2", "mistral", "qwen2", "qwen3", "phi3", "olmo2"])
def test_models_of_full_size_are_probed_on_a_small_twin(model_type):
    config = full_size(model_type)
    twin = gate.shrink(config)
    assert twin.num_hidden_layers <= 8
    assert twin.vocab_size <= 128
    assert packs(config).ok


@pytest.mark.parametrize(("model_type", "reason"), NEVER.items(), ids=NEVER)
def test_models_that_do_not_pack(model_type, reason):
    result = packs(full_size(model_type))
    assert not result.ok
    assert result.reason
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
    def forgets_the_prompt(module, *states, layout, calls=None, **terms):
        calls.append(module)
        alone = Layout(layout.bounds, (-1,) * len(layout.prefix), ())
        return gate.packed_attention(module, *states, layout=alone, **terms)

    monkeypatch.setitem(gate.AttentionInterface._global_mapping, gate._COUNTED, forgets_the_prompt)
    gate._packs.cache_clear()
    result = packs(read_config(tiny_backbone("llama")))
    gate._packs.cache_clear()
    assert result.reason == "a pack and its sequences one by one differ"


@pytest.mark.parametrize(("architecture", "term"), [("mistral", "sliding_window"), ("gemma2", "softcap")])
def test_an_attention_that_drops_a_term_is_caught(monkeypatch, architecture, term):
    def drops(module, *states, calls=None, **terms):
        calls.append(module)
        return gate.packed_attention(module, *states, **{**terms, term: None})

    monkeypatch.setitem(gate.AttentionInterface._global_mapping, gate._COUNTED, drops)
    gate._packs.cache_clear()
    result = packs(full_size(architecture))
    gate._packs.cache_clear()
    assert result.reason == "a pack and its sequences one by one differ"


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
