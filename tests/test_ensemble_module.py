"""An ensemble in the module: its terms are means over members, and what it cannot do is one line."""

import json

import lightning.pytorch as L
import pytest
import torch

from grmlight import PairDataModule, RewardModule
from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation import Benchmarks
from grmlight.evaluation.benchmarks import PairFile
from grmlight.evaluation.evaluate import evaluate
from grmlight.evaluation.group_scorer import ModelScorer
from grmlight.models import EnsembleConfig, HeadConfig
from grmlight.regularizers import DirectPreference, PositiveReward, TextGeneration
from tests.tiny_models import tiny_backbone


@pytest.fixture(scope="module")
def data(tmp_path_factory, byte_tokenizer):
    folder = tmp_path_factory.mktemp("data")
    rows = [{"prompt": f"why {i}?", "chosen": "so " * (1 + i % 4), "rejected": "not so"} for i in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRMLIGHT_CACHE", str(folder / "cache"))
        yield lambda: PairDataModule(
            train=str(folder / "pairs.jsonl"),
            val=str(folder / "pairs.jsonl"),
            tokenizer=str(byte_tokenizer),
            pairs_per_step=4,
        )


def module(members, aggregation="mean"):
    return RewardModule(
        tiny_backbone("llama", members == "adapters", {"vocab_size": 320}),
        HeadConfig(width=16, dropout=0.0),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        ensemble=EnsembleConfig(3, members, aggregation, reference_pairs=5),
    )


def trainer(*callbacks, **options):
    defaults = {"accelerator": "cpu", "max_steps": 4, "max_epochs": -1, "num_sanity_val_steps": 0, "logger": False}
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(callbacks=list(callbacks), **defaults | quiet | options)


class Terms(L.Callback):
    """Compares each pack's terms with those of the members one by one."""

    seen = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with torch.no_grad():
            outputs = pl_module.model(batch, pl_module.signals)
            found = pl_module.objective(outputs, batch)
            each = [pl_module.objective(member, batch) for member in outputs.members]
        self.seen += 1
        assert len(each) == 3
        torch.testing.assert_close(found.loss, torch.stack([one.loss for one in each]).mean())
        for name, value in found.terms.items():
            torch.testing.assert_close(value, torch.stack([one.terms[name] for one in each]).mean())


@pytest.mark.parametrize("members", ["models", "adapters", "heads"])
def test_every_term_is_the_mean_over_the_members(members, data):
    """Penalties of groups and of packs alike, with the weights of a convex mixture."""
    terms = Terms()
    trainer(TextGeneration(0.1), DirectPreference(0.2, reference=False), PositiveReward(), terms).fit(
        module(members), data()
    )
    assert terms.seen == 4


def test_training_does_not_depend_on_aggregation_or_statistics(data):
    """Validation recenters in between; the members are the same after it."""
    weights = []
    for aggregation, options in (("mean", {"limit_val_batches": 0}), ("wco", {"val_check_interval": 1})):
        made = module("adapters", aggregation)
        run = trainer(**options)
        run.fit(made, data())
        weights.append({name: value.clone() for name, value in made.model.trunks.state_dict().items()})
        assert not torch.equal(made.model.reward_shift_K, torch.zeros(3))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert {"val/disagreement", "val/margin_disagreement"} <= run.callback_metrics.keys()


def test_random_models_have_no_common_reference(data):
    with pytest.raises(ValueError, match="no start model in common"):
        trainer(DirectPreference(0.1)).fit(module("models"), data())
    trainer(DirectPreference(0.1)).fit(module("adapters"), data())


def test_an_ensemble_needs_pairs_to_recenter_on():
    with pytest.raises(ValueError, match="recentered on the training pairs of a PairDataModule"):
        trainer().fit(module("heads"), [], [])


def test_benchmarks_are_those_of_the_model_that_is_saved(data, tmp_path, byte_tokenizer):
    rows = [
        {"prompt": f"who {i}?", "chosen": "so " * (1 + i % 3) + "it", "rejected": "it is not " * (1 + i % 2)}
        for i in range(30)
    ]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmarks = Benchmarks(pairs={"bench": str(tmp_path / "bench.jsonl")})
    trained = module("heads", "wco")
    trainer(benchmarks, limit_val_batches=0).fit(trained, data())
    scorer = ModelScorer(trained.model, load_tokenizer(str(byte_tokenizer)))
    benchmark = PairFile("bench")
    again = evaluate(scorer, benchmark, benchmark.read(str(tmp_path / "bench.jsonl")))
    assert again.kept.rows == benchmarks.results[0].kept.rows
