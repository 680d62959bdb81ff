"""A whole online run on the embedded world: the real sampler, prompts and rewards, what it leaves, and going on."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from transformers import AutoModelForCausalLM, AutoTokenizer

from grmlight.evaluation.group_scorer import ModelScorer
from grmlight.export import SaveModel, open_checkpoint
from grmlight.lab import GoldReward, WorldPrompts
from grmlight.models import BackboneConfig, LoraOptions, PolicyModel
from grmlight.policy.online.curve import run_curve
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.online.options import Update
from grmlight.policy.sampler import SamplingOptions
from grmlight.training.checkpoints import Checkpoints
from grmlight.training.resume import newest_checkpoint
from tests.tiny_models import tiny_reward_model

LM = "package:grmlight.lab/assets/lm"


def run(folder, tokenizer, prompts=24, lora=None, **trainer):
    scorer = ModelScorer(
        tiny_reward_model(config={"vocab_size": 320}), AutoTokenizer.from_pretrained(tokenizer), name="bytes"
    )
    module = OnlineModule(
        BackboneConfig(LM, lora=lora),
        [scorer],
        watch=[GoldReward()],
        sampling=SamplingOptions(samples=3, max_new_tokens=16),
        update=Update(epochs=2, minibatches=2),
        critic="apart",
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )
    data = WorldPrompts(prompts=prompts, val_prompts=0, max_new_tokens=16, prompts_per_step=8)
    fit = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=CSVLogger(str(folder), name="", version=""),
        log_every_n_steps=1,
        callbacks=[Checkpoints(folder / "checkpoints", every_n_train_steps=4, save_last=True), SaveModel()],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    fit.fit(module, data, **trainer)
    return module


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`", "ignore:The dirpath has changed")
@pytest.mark.parametrize("lora", [None, LoraOptions(r=4, dropout=0.0)], ids=["full", "lora"])
def test_a_run_on_the_world(lora, tmp_path, byte_tokenizer):
    whole = run(tmp_path / "whole", byte_tokenizer, lora=lora)
    assert whole.iterations == 3
    assert whole.global_step == 12

    points = run_curve(tmp_path / "whole" / "metrics.csv", "world", 0, gold="rollout/watch_gold")
    assert [point.step for point in points] == [4, 8, 12]
    assert abs(points[0].kl) < 1e-3
    assert all(abs(point.gold) < 3 for point in points)

    batch = whole.experience
    assert batch.k1_L.abs().max() > 0.01
    sampled = torch.cat(
        [torch.from_numpy(answer.logps) for rollout in batch.rollouts for answer in rollout.answers]
    ).double()
    torch.testing.assert_close(sampled, batch.logps_L, atol=1e-3, rtol=1e-4)

    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "model")
    found = newest_checkpoint(tmp_path / "whole", training=True)
    opened = open_checkpoint(found).model
    assert isinstance(opened, PolicyModel)
    opened.save_pretrained(tmp_path / "opened")
    for name, tensor in AutoModelForCausalLM.from_pretrained(tmp_path / "opened").state_dict().items():
        torch.testing.assert_close(tensor, saved.state_dict()[name], msg=name)

    kept = [path for path in (tmp_path / "whole" / "checkpoints").glob("*.ckpt") if not path.is_symlink()]
    early = min(kept, key=lambda path: torch.load(path, weights_only=True)["global_step"])
    again = run(tmp_path / "again", byte_tokenizer, lora=lora, ckpt_path=early)
    assert again.iterations == 3
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
