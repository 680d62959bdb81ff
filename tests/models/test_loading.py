"""What kind of model a folder holds."""

import pytest
import torch

from grmlight.models import HeadConfig, RewardModel, load_reward_model
from tests.tiny_models import tiny_backbone


@pytest.mark.parametrize("options", ["", "{}", '{"kind": "reward"}'])
def test_a_plain_folder_is_a_reward_model(options, tmp_path):
    model = RewardModel(tiny_backbone("llama"), HeadConfig(width=8))
    model.save_pretrained(tmp_path)
    if options:
        (tmp_path / "grmlight.json").write_text(options)
    loaded = load_reward_model(tmp_path, dtype="float32")
    assert type(loaded) is RewardModel
    assert torch.equal(loaded.head.summary[-1].weight, model.head.summary[-1].weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [('{"kind": "oracle"}', "'oracle' is none of reward"), ("[1", "cannot be"), ("[1]", "cannot be")],
)
def test_an_unknown_kind_is_refused(options, message, tmp_path):
    (tmp_path / "grmlight.json").write_text(options)
    with pytest.raises(ValueError, match=message):
        load_reward_model(tmp_path)
