"""What an online run tells of its rewards: checked, unshaped, watched ones too; and what its curves are called."""

import csv
import logging
import math

import pytest
from lightning.pytorch.loggers import CSVLogger

from grmlight.policy.constraints.constraints import Constraints
from grmlight.policy.online.controllers import KlOptions
from grmlight.policy.online.mixing import WeightedSum
from grmlight.policy.online.module import OnlineModule
from grmlight.policy.online.options import Shaping, Update
from grmlight.policy.sampler import SamplingOptions
from tests.policy.online.parts import Canned, digits, fit, small_backbone

PROMPTS = [str(number) for number in range(12)]


def module_of(rewards, **options):
    settings = {"sampling": SamplingOptions(samples=4), "update": Update(minibatches=2), "advantage": "rloo"} | options
    module = OnlineModule(small_backbone(), rewards, **settings)
    module.sampler = Canned()
    return module


class Answers:
    """A reward whose lists have these lengths, whatever was asked."""

    name = "answers"

    def __init__(self, *lengths):
        self.lengths = lengths

    def score(self, groups):
        return [[1.0] * length for length in self.lengths]


@pytest.mark.parametrize("lengths", [(1,) * 6, (3, 5, 4, 4, 4, 4), (4,) * 5])
def test_a_reward_of_the_wrong_number_of_values_is_named(lengths):
    with pytest.raises(ValueError, match="reward 'answers' failed .*did not give one number an answer"):
        fit(module_of([Answers(*lengths)]), PROMPTS[:6], 6)


def test_the_score_that_is_logged_is_before_shaping():
    module = module_of([digits], shaping=Shaping(whiten=True, clip=0.5, cut_penalty=3.0))
    trainer = fit(module, PROMPTS[:6], 6)
    raw_N = module.experience.rewards["digits"]
    assert float(trainer.callback_metrics["rollout/score"]) == pytest.approx(raw_N.mean().item())
    assert float(trainer.callback_metrics["rollout/score_std"]) == pytest.approx(raw_N.std().item())
    assert abs(raw_N.mean()) > 0.01


def test_rewards_that_nothing_combines_have_no_score():
    trainer = fit(module_of([digits], advantage="gae", mixing=WeightedSum()), PROMPTS[:6], 6)
    assert "rollout/score" not in trainer.callback_metrics
    assert "rollout/reward_digits" in trainer.callback_metrics


def test_a_watched_reward_without_values_or_without_differences_is_named(caplog):
    def partly(prompt, response):
        return math.nan if len(response) % 2 else 1.0

    with caplog.at_level(logging.WARNING, "grmlight"):
        trainer = fit(module_of([digits], watch=[partly]), PROMPTS[:6], 6)
    assert "reward 'watch:partly' is not finite for" in caplog.text
    assert "reward 'watch:partly' is 1 for all" in caplog.text
    assert 0 < trainer.callback_metrics["rollout/unscored_watch_partly"] < 1


def test_rewards_that_are_finite_for_different_answers_are_counted():
    def odd(prompt, response):
        return 1.0 if len(response) % 2 else math.nan

    def even(prompt, response):
        return math.nan if len(response) % 2 else 1.0

    with pytest.raises(ValueError, match=r"none of its 24 answers has a finite reward \(finite: odd \d+, even \d+\)"):
        fit(module_of([odd, even]), PROMPTS[:6], 6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"aggregator": "median"}, "aggregator must be one of mean, wco, uwo, sum, got 'median'"),
        ({"variance_weight": math.nan}, "variance_weight must be finite"),
        ({"mixing": WeightedSum(), "aggregator": "wco"}, "drop aggregator"),
    ],
)
def test_an_aggregator_that_is_none_is_refused_at_once(options, words):
    with pytest.raises(ValueError, match=words):
        module_of([digits], **options)


@pytest.mark.parametrize(
    ("options", "method", "beta"),
    [
        ({"advantage": "gae"}, "ppo", 0.05),
        ({"advantage": "grpo", "kl": KlOptions(coefficient=0.2)}, "grpo", 0.2),
        ({"kl": KlOptions(target=3.0)}, "rloo", None),
        ({"advantage": "gae", "mixing": Constraints({"digits": 0.1}, "mu")}, "ppo mu", 0.05),
    ],
)
def test_curves_have_the_algorithms_name(options, method, beta):
    module = module_of([digits], **options)
    assert (module.curve_method, module.curve_beta) == (method, beta)


@pytest.mark.parametrize("dropout", [False, True])
def test_the_first_ratio_is_one_without_dropout(dropout, tmp_path):
    backbone = small_backbone(attention_dropout=0.3)
    module = OnlineModule(
        backbone, [digits], "rloo", sampling=SamplingOptions(samples=4), update=Update(), dropout=dropout
    )
    module.sampler = Canned()
    fit(module, PROMPTS[:6], 6, logger=CSVLogger(tmp_path, name="", version=0))
    (row,) = csv.DictReader((tmp_path / "version_0" / "metrics.csv").read_text().splitlines())
    assert (abs(float(row["train/approximate_kl"])) < 1e-6) is not dropout
