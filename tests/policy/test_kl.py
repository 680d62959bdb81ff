"""KL estimators against sums over all answers, and SampledKL in a run."""

import logging
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from grmlight import Checkpoints, PolicyModule
from grmlight.evaluation.curves import read_curves
from grmlight.lab import WorldData
from grmlight.models import PolicyModel
from grmlight.policy.huggingface import HuggingFaceSampler
from grmlight.policy.kl import ESTIMATORS, SampledKL, k1, k2, k3, sampled_kl
from grmlight.policy.objectives import AlignmentObjective
from grmlight.policy.rollouts import Answer, Rollout
from tests.tiny_models import tiny_backbone

LM = "package:grmlight.lab/assets/lm"


def test_the_estimators_are_their_formulas():
    logps, reference = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -0.5, -0.5])
    assert k1(logps, reference).tolist() == [0.5, -1.5, 0.0]
    assert k2(logps, reference).tolist() == [0.125, 1.125, 0.0]
    expected = [math.exp(-0.5) - 1 + 0.5, math.exp(1.5) - 1 - 1.5, 0.0]
    assert k3(logps, reference).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_k1_and_k3_average_to_the_kl_over_all_answers(name, unbiased):
    """Of two distributions over five tokens, exactly: the mean under the first of them."""
    draw = torch.Generator().manual_seed(2)
    policy, reference = (torch.randn(5, generator=draw, dtype=torch.float64).log_softmax(0) for _ in range(2))
    kl = float((policy.exp() * (policy - reference)).sum())
    mean = float((policy.exp() * ESTIMATORS[name](policy, reference)).sum())
    assert kl > 0.1
    assert (mean == pytest.approx(kl, rel=1e-9)) == unbiased


def random_rollouts(prompts, samples):
    draw = np.random.default_rng(0)

    def answer():
        tokens = draw.integers(3, 90, draw.integers(1, 9))
        return Answer(tokens, "", True)

    return [Rollout("", draw.integers(3, 90, 7), tuple(answer() for _ in range(samples))) for _ in range(prompts)]


@pytest.mark.parametrize("forwards", [1, 2, 5, 9])
def test_the_kl_of_answers_is_the_sum_over_their_tokens(forwards):
    """Against transformers' full logits, one answer at a time; more forwards than prompts change nothing."""
    model = PolicyModel(tiny_backbone(), reference=True)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    rollouts = random_rollouts(5, 2)
    found = sampled_kl(model.train(), rollouts, forwards)
    assert model.training
    assert model.reference is not None
    both = (model.lm, model.reference)
    for lm in both:
        lm.set_attn_implementation("eager")

    def logps(lm, prompt, answer):
        ids = torch.from_numpy(np.concatenate([prompt, answer]))
        with torch.no_grad():
            table = lm(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)
        places = torch.arange(len(prompt), len(ids))
        return table[places - 1, ids[places]]

    for name, estimator in ESTIMATORS.items():
        expected = [
            float(
                estimator(*(logps(lm, each.prompt_tokens, answer.tokens) for lm in (model.lm, model.reference))).sum()
            )
            for each in rollouts
            for answer in each.answers
        ]
        assert found[name].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def run(folder, callback, **options):
    """Ten steps of DPO on the embedded world, with a learning rate that moves the policy."""
    module = PolicyModule(
        options.pop("backbone", LM),
        AlignmentObjective("dpo", beta=0.1),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=options.pop("lr", 3e-4)),
        schedule="constant",
        **{name: options.pop(name) for name in ("reference",) if name in options},
    )
    data = WorldData(pairs=40, pairs_per_step=8)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=options.pop("max_steps", 10),
        max_epochs=-1,
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=CSVLogger(folder, name="csv", version=0),
        callbacks=[callback, Checkpoints(folder / "checkpoints", every_n_train_steps=4, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=options.pop("resume", None))
    return trainer, module


def measurement(**options):
    return SampledKL(**{"every_n_steps": 4, "prompts": 12, "gold": "grmlight.lab.GoldReward"} | options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    patch = pytest.MonkeyPatch()
    patch.setenv("GRMLIGHT_CACHE", str(folder / "cache"))
    try:
        run(folder, measurement(proxy="tests.policy.test_kl.length"))
    finally:
        patch.undo()
    return folder


def length(prompt, response):
    """A reward that is known without a model."""
    return float(len(response.split()))


def test_a_curve_is_measured_inside_the_epoch(whole):
    points = read_curves(whole / "csv" / "version_0" / "curve.jsonl")
    assert [point.step for point in points] == [0, 4, 8, 10]
    assert {(point.method, point.beta, point.kl_estimator) for point in points} == {("dpo", 0.1, "k1")}
    assert points[0].kl == pytest.approx(0, abs=1e-5)
    assert all(
        math.isfinite(each) for point in points for each in (point.kl, point.proxy, point.gold, point.standard_error)
    )
    assert abs(points[-1].kl) > 1e-3
    assert (whole / "csv" / "version_0" / "curve.png").stat().st_size > 1000
    header, *rows = (whole / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    for name in ("kl_k1", "kl_k2", "kl_k3", "tokens", "ended", "proxy", "gold"):
        assert f"policy/{name}" in header.split(",")


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_has_the_whole_curve(whole, tmp_path, monkeypatch):
    """Points are of the run, not of the process; the same answers are drawn again."""
    monkeypatch.setenv("GRMLIGHT_CACHE", str(whole / "cache"))
    proxy = "tests.policy.test_kl.length"
    run(tmp_path / "cut", measurement(proxy=proxy), max_steps=8)
    run(tmp_path / "rest", measurement(proxy=proxy), resume=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    found = (tmp_path / "rest" / "csv" / "version_0" / "curve.jsonl").read_text()
    assert found == (whole / "csv" / "version_0" / "curve.jsonl").read_text()


def test_a_kl_that_explodes_is_named_and_leaves_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        ValueError, match=r"step 3: the KL to the reference is .* nats an answer, above SampledKL's limit"
    ) as caught:
        run(tmp_path, measurement(every_n_steps=3, limit=0.5), lr=3e-2)
    kept = str(caught.value).split("kept in ")[1].split(";")[0]
    assert torch.load(kept, weights_only=True)["global_step"] == 3


def partly(prompt, response):
    """A reward that has no value for some answers."""
    return math.nan if len(response) % 3 == 0 else 1.0


class Raises:
    name, calls = "raises", 0

    def score(self, groups):
        Raises.calls += 1
        if Raises.calls == 2:
            raise RuntimeError("the endpoint is gone")
        return [[1.0] * len(group.responses) for group in groups]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_reward_without_a_value_or_that_raises_costs_no_point(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    rewards = {"gold": "tests.policy.test_kl.partly", "proxy": "tests.policy.test_kl.Raises", "every_n_steps": 3}
    with (
        caplog.at_level(logging.WARNING, "grmlight"),
        pytest.raises(ValueError, match="the endpoint is gone") as caught,
    ):
        run(tmp_path / "first", measurement(max_new_tokens=8, **rewards), max_steps=4)
    assert "gold 'tests.policy.test_kl.partly' is not finite for" in caplog.text
    kept = str(caught.value).split("kept in ")[1].split(";")[0]
    assert torch.load(kept, weights_only=True)["global_step"] == 3
    run(tmp_path / "again", measurement(max_new_tokens=8, **rewards), max_steps=4, resume=kept)
    points = read_curves(tmp_path / "again" / "csv" / "version_0" / "curve.jsonl")
    assert [(point.step, point.gold) for point in points] == [(0, 1.0), (3, 1.0), (4, 1.0)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every_n_steps": 0}, "every_n_steps and prompts must be at least 1"),
        ({"estimator": "k4"}, "estimator must be one of k1, k2, k3"),
        ({"limit": 0.0}, "limit must be above 0"),
    ],
)
def test_a_wrong_setting_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        measurement(**options)


def test_a_set_or_reward_that_is_not_there_is_named_before_the_model_is_built(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    for options, said in (
        ({"set": "dev"}, "there is no set 'dev'; choose from"),
        ({"gold": "nothing"}, "no such folder"),
    ):
        with pytest.raises(ValueError, match=said):
            run(tmp_path, measurement(**options), backbone=LM)


def test_prompts_without_room_for_an_answer_are_left_out_and_named(tmp_path, monkeypatch, caplog):
    """The first prompts that can be answered are measured, on; the run goes on."""
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    refused = HuggingFaceSampler.refused

    def odd(self, prompts, options):
        return refused(self, prompts, options) | dict.fromkeys(range(0, len(prompts), 2), "is too long")

    monkeypatch.setattr(HuggingFaceSampler, "refused", odd)
    callback = measurement(prompts=5, max_new_tokens=4)
    with caplog.at_level(logging.WARNING, "grmlight"):
        run(tmp_path, callback, max_steps=1)
    assert caplog.text.count("SampledKL: ") == 1
    assert "prompts are left out, the first is" in caplog.text
    assert [point.step for point in callback.points] == [0, 1]
    assert callback._texts == [text for place, text in enumerate(callback._candidates[:12]) if place % 5 % 2][:5]


def test_without_any_prompt_that_can_be_answered_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"SampledKL: \d+ prompts are left out, .*lower max_new_tokens"):
        run(tmp_path, measurement(max_new_tokens=127), max_steps=1)
