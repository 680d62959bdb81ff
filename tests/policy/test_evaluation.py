"""Policies evaluated: the same figures at the end of training, from a checkpoint alone, and computed one by one."""

import json
import random

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM

from grmlight import Checkpoints, PairDataModule, PolicyModule
from grmlight.export import export
from grmlight.models import BackboneConfig, LoraOptions, PolicyModel
from grmlight.policy.objectives import AlignmentObjective
from tests.test_training_runs import WORDS
from tests.train_run import TINY

BETA = 0.3
SETTINGS = {"store": {}, "copy": {"reference": "copy"}, "lora": {}}


@pytest.fixture
def pairs(tmp_path, byte_tokenizer, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    draw = random.Random(3)

    def text():
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 12)))

    for name in ("train", "val"):
        rows = [{"prompt": text(), "chosen": text(), "rejected": text()} for _ in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def data():
        return PairDataModule(
            train=str(tmp_path / "train.jsonl"),
            val={"held_out": str(tmp_path / "val.jsonl")},
            tokenizer=str(byte_tokenizer),
            pairs_per_step=4,
            eval_pairs=4,
        )

    return data


def module(setting):
    lora = LoraOptions(r=4, alpha=8, dropout=0.0) if setting == "lora" else None
    return PolicyModule(
        BackboneConfig(name="", pretrained=False, config=TINY, lora=lora),
        AlignmentObjective("dpo", beta=BETA),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
        **SETTINGS[setting],
    )


def trainer(folder):
    return Trainer(
        accelerator="cpu",
        max_epochs=4,
        log_every_n_steps=1,
        logger=False,
        callbacks=[Checkpoints(folder / "checkpoints", save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_figures_are_those_of_the_implicit_reward(setting, pairs, tmp_path):
    trained, data, fit = module(setting), pairs(), trainer(tmp_path)
    fit.fit(trained, data)
    figures = {name: float(value) for name, value in fit.callback_metrics.items() if name.startswith("val/")}
    last = tmp_path / "checkpoints" / "last.ckpt"
    (again,) = trainer(tmp_path).validate(module(setting), pairs(), ckpt_path=last, verbose=False)
    assert {name: again[name] for name in figures} == pytest.approx(figures, rel=1e-6)

    folder = tmp_path / "policy"
    export(last, folder)
    now = AutoModelForCausalLM.from_pretrained(folder).eval()
    start = PolicyModel(BackboneConfig(name="", pretrained=False, config=TINY)).lm.eval()
    start.set_attn_implementation("eager")
    expected = {side: [] for side in ("chosen", "rejected")}
    for batch in data.val_dataloader()[0]:
        layout, tokens = batch.layout, batch.input_ids_T
        for response, segment in enumerate(layout.responses):
            prompt = layout.prefix[segment]
            spans = [slice(*layout.bounds[each : each + 2]) for each in (prompt, segment)]
            ids = torch.cat([tokens[span] for span in spans])
            count = int((batch.response_L == response).sum())
            logps = []
            for lm in (now, start):
                with torch.no_grad():
                    table = lm(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
                places = torch.arange(len(ids) - count, len(ids))
                logps.append(float(table[places - 1, ids[places]].sum()))
            expected["chosen" if response in batch.better_C else "rejected"].append(logps)
    for side, found in expected.items():
        values = torch.tensor(found)
        assert figures[f"val/held_out/{side}_logps"] == pytest.approx(float(values[:, 0].mean()), rel=1e-4)
        ratios = values[:, 0] - values[:, 1]
        assert figures[f"val/held_out/{side}_log_ratio"] == pytest.approx(float(ratios.mean()), rel=1e-3, abs=1e-4)
        assert figures[f"val/held_out/{side}_reward"] == pytest.approx(BETA * float(ratios.mean()), rel=1e-3, abs=1e-4)
    assert abs(figures["val/held_out/rejected_log_ratio"]) > 0.1
