"""Directions that are robust on the embedded world: what DPO does to chosen responses, and RPO's anchor."""

import lightning.pytorch as L
import pytest
import torch

from grmlight import PolicyModule
from grmlight.lab import WorldData
from grmlight.policy.kl import SampledKL
from grmlight.policy.objectives import AlignmentObjective, Anchor

LM = "package:grmlight.lab/assets/lm"


def trained(objective, epochs):
    """What a run on 300 noisy pairs ends with: the curve, and the validation figures in distribution."""
    measure = SampledKL(every_n_steps=1000, prompts=64, set="id", max_new_tokens=40, gold="grmlight.lab.GoldReward")
    module = PolicyModule(
        LM,
        objective,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.0),
        schedule="constant",
        warmup_ratio=0.1,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        callbacks=[measure],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    data = WorldData(pairs=300)
    trainer.fit(module, data)
    module.eval()
    data.reference_logps, data.select = {}, None
    sums, count = torch.zeros(2), 0
    for batch in data.train_dataloader():
        with torch.no_grad():
            outputs = module(batch, module.signals)
        ratios_N = outputs.logps_N - outputs.reference_logps_N
        sums += torch.stack([ratios_N[batch.better_C].sum(), ratios_N[batch.worse_C].sum()])
        count += len(batch.better_C)
    return measure.points[-1], *(sums / count).tolist()


@pytest.mark.slow
def test_chosen_falls_under_dpo_and_rises_under_rpo(tmp_path, monkeypatch):
    """Log-ratios of the training pairs after nine epochs, and the KL that each has spent."""
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path))
    dpo, dpo_chosen, dpo_rejected = trained(AlignmentObjective("dpo"), 9)
    rpo, rpo_chosen, rpo_rejected = trained(AlignmentObjective("rpo", anchor=Anchor(eta=1.0)), 9)
    assert dpo_chosen < -0.5
    assert rpo_chosen > 0.5
    assert dpo_rejected < rpo_rejected < rpo_chosen
    assert dpo.kl > 2 * rpo.kl > 0
