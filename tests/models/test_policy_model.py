"""A policy's log-probs are those that transformers computes one sequence at a time, and so are its reference's."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grmlight.data.encode import TokenGroup, pack
from grmlight.lab import world_files
from grmlight.models import BackboneConfig, LoraOptions, PolicyModel, Signal, load_reward_model

LM = str(world_files().lm)
BOTH = frozenset({Signal.LOGPS, Signal.REFERENCE_LOGPS})


def groups():
    draw = np.random.default_rng(0)
    found = []
    for size, lengths in ((5, (3, 1, 7)), (9, (4,)), (2, (6, 6))):
        prompt = draw.integers(5, 90, size)
        responses = tuple(np.concatenate([prompt, draw.integers(5, 90, length)]) for length in lengths)
        found.append(TokenGroup(responses, (size,) * len(responses)))
    return found


def one_by_one(lm):
    """The log-prob of each response token, from full float64 logits."""
    lm = lm.double().eval()
    found = []
    with torch.no_grad():
        for group in groups():
            for tokens, start in zip(group.responses, group.starts, strict=True):
                ids = torch.from_numpy(tokens)[None]
                logps = lm(input_ids=ids).logits[0, :-1].log_softmax(-1)
                found.append(logps.gather(1, ids[0, 1:, None])[start - 1 :, 0])
    return found


def changed(model):
    """Move what trains away from the start weights."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


@pytest.mark.parametrize("lora", [None, LoraOptions(r=4, dropout=0.0)])
@pytest.mark.parametrize("packing", ["auto", "never"])
def test_log_probs_of_policy_and_reference(lora, packing, tmp_path):
    start = one_by_one(AutoModelForCausalLM.from_pretrained(LM, dtype=torch.float32))
    model = changed(PolicyModel(BackboneConfig(LM, lora=lora), reference=True, packing=packing))
    model.save_pretrained(tmp_path / "policy", AutoTokenizer.from_pretrained(LM))
    now = one_by_one(AutoModelForCausalLM.from_pretrained(tmp_path / "policy"))

    outputs = model.eval()(pack(groups()), BOTH)

    torch.testing.assert_close(outputs.logps_L.double(), torch.cat(now), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(outputs.reference_logps_L.double(), torch.cat(start), atol=1e-4, rtol=1e-5)
    sums = torch.stack([each.sum() for each in now])
    torch.testing.assert_close(outputs.logps_N.double(), sums, atol=1e-4, rtol=1e-5)
    ratios = sums - torch.stack([each.sum() for each in start])
    assert ratios.abs().min() > 0.01
    torch.testing.assert_close(outputs.rewards_N.double(), ratios, atol=1e-4, rtol=1e-5)
    assert not outputs.rewards_N.requires_grad


def test_a_saved_policy_is_no_reward_model(tmp_path):
    model = PolicyModel(BackboneConfig(LM))
    model.save_pretrained(tmp_path, AutoTokenizer.from_pretrained(LM))
    (tmp_path / "grmlight.json").write_text('{"kind": "policy"}')
    with pytest.raises(ValueError, match="is a policy, which has no reward"):
        load_reward_model(tmp_path)
    again = PolicyModel.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
