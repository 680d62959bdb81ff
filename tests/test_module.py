"""The module with its regularizers in a Trainer: what a script does, on tiny models."""

import json
import math
import time

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger

from grmlight import PairDataModule, RewardModule
from grmlight.evaluation.pair_figures import FIGURES
from grmlight.models import HeadConfig, Signal
from grmlight.regularizers import DirectPreference, Ramp, Regularizer, RewardCentering, ScoreL2, TextGeneration
from tests.tiny_models import PACKABLE, tiny_backbone


class Spread(Regularizer):
    """A regularizer of one's own."""

    def __init__(self, weight=0.1):
        super().__init__(weight, mixing="additive", name="spread")

    def penalty(self, outputs, batch):
        better_C, worse_C = outputs.rewards_N[batch.better_C], outputs.rewards_N[batch.worse_C]
        return batch.mean_by_group((better_C - worse_C).square())


class Broken(Spread):
    """One that divides by zero."""

    def penalty(self, outputs, batch):
        return super().penalty(outputs, batch) / 0.0


class Kept(Logger):
    """Keeps what is logged of training, a dictionary a step."""

    name = version = None

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if "train/loss" in metrics:
            self.steps.append(metrics)


class Start(L.Callback):
    """Keeps the weights that training starts from, and counts validation packs."""

    def on_train_start(self, trainer, pl_module):
        self.weights = {name: value.clone() for name, value in pl_module.model.state_dict().items()}

    def on_validation_epoch_start(self, trainer, pl_module):
        self.packs = 0

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.packs += 1


@pytest.fixture(scope="module")
def data(tmp_path_factory, byte_tokenizer):
    """Makes a DataModule of 12 pairs for training and 10 for validation."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("train", 12), ("val", 10)):
        rows = [
            {"prompt": f"why {i}?", "chosen": "so " * (1 + i % 4) + name, "rejected": "not so", "margin": 0.5}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**options):
        files = {name: str(folder / f"{name}.jsonl") for name in ("train", "val")}
        return PairDataModule(**files, tokenizer=str(byte_tokenizer), **{"pairs_per_step": 4} | options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRMLIGHT_CACHE", str(folder / "cache"))
        yield make


def reward_module(architecture="llama", lora=False, dropout=0.0, frozen=False, **options):
    backbone = tiny_backbone(architecture, lora, {"vocab_size": 320}, frozen=frozen)
    adamw = {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)}
    return RewardModule(backbone, HeadConfig(width=16, dropout=dropout), **adamw | {"warmup_ratio": 0.0} | options)


def trainer(*callbacks, steps=2, **options):
    defaults = {
        "accelerator": "cpu",
        "max_steps": steps,
        "max_epochs": -1,
        "logger": Kept(),
        "callbacks": list(callbacks),
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**defaults | options)


def fit(module, data, *callbacks, **options):
    """Train; what was logged at each step."""
    made = trainer(*callbacks, **options)
    made.fit(module, data)
    return made.logger.steps


def in_training(figures):
    """Without what depends on the machine."""
    return {name: value for name, value in figures.items() if name.startswith("train/")}


def test_a_regularizer_of_ones_own_works_in_a_script(data):
    module = reward_module()
    logged = fit(module, data(), Spread(0.25))
    assert module.signals == frozenset()
    for step in logged:
        assert step["train/loss"] == pytest.approx(step["train/preference"] + 0.25 * step["train/spread"], rel=1e-6)


def test_regularizers_stack_and_every_term_is_logged_by_name(data):
    module = reward_module()
    stack = [
        TextGeneration(0.2),
        TextGeneration(0.1, form="token_mean", name="per_token"),
        DirectPreference(0.3, reference=False),
        ScoreL2(0.01),
        Spread(),
    ]
    logged = fit(module, data(), *stack, steps=3)
    assert module.signals == {Signal.CHOSEN_LOGPS, Signal.LOGPS}
    assert len(logged) == 3
    names = {"text_generation": 0.2, "per_token": 0.1, "direct_preference": 0.3, "score_l2": 0.01, "spread": 0.1}
    for step in logged:
        assert step.keys() == {
            *(f"train/{name}" for name in ("loss", "preference", "learning_rate", "sharing", "imbalance", *FIGURES)),
            *(f"speed/{name}" for name in ("memory_gb", "tokens_per_second", "pairs_per_second")),
            *(f"train/{name}" for name in names),
            *(f"train/{name}_weight" for name in names),
        }
        assert {name: step[f"train/{name}_weight"] for name in names} == names
        total = (1 - 0.6) * step["train/preference"] + sum(w * step[f"train/{name}"] for name, w in names.items())
        assert step["train/loss"] == pytest.approx(total, rel=1e-5)


def test_logged_terms_are_means_over_the_steps_since_the_last_line(data):
    every = fit(reward_module(), data(), Spread(), steps=6)
    rarely = fit(reward_module(), data(), Spread(), steps=6, log_every_n_steps=3)
    assert len(rarely) == 2
    for index, step in enumerate(rarely):
        for name in ("train/loss", "train/preference", "train/spread", "train/accuracy", "train/margin"):
            mean = sum(each[name] for each in every[3 * index : 3 * index + 3]) / 3
            assert step[name] == pytest.approx(mean, rel=1e-5)


def test_weight_zero_is_no_regularizer_at_all(data):
    without, zero = reward_module(dropout=0.1), reward_module(dropout=0.1)
    expected = fit(without, data())
    found = fit(zero, data(), TextGeneration(0.0), DirectPreference(0.0), ScoreL2(0.0))
    assert [in_training(step) for step in found] == [in_training(step) for step in expected]
    assert zero.signals == frozenset()
    assert zero.model.reference is None
    weights = without.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in zero.model.state_dict().items())


def test_a_ramp_to_zero_keeps_its_term(data):
    module = reward_module()
    logged = fit(module, data(), TextGeneration(Ramp(0.5, 0.0, steps=2)), steps=4)
    assert [step["train/text_generation_weight"] for step in logged] == [0.5, 0.25, 0.0, 0.0]
    assert all(step["train/text_generation"] > 0 for step in logged)
    assert logged[-1]["train/loss"] == logged[-1]["train/preference"]
    assert module.signals == {Signal.CHOSEN_LOGPS}


def test_a_second_run_of_a_module_has_the_regularizers_of_its_own_trainer(data):
    module = reward_module()
    fit(module, data(), Spread(0.25), TextGeneration(0.1))
    (step, *_) = fit(module, data(), Spread(0.5))
    assert [regularizer.weight for regularizer in module.regularizers] == [0.5]
    assert step["train/loss"] == pytest.approx(step["train/preference"] + 0.5 * step["train/spread"], rel=1e-6)


class LastGradient(L.Callback):
    """Spoils the gradient of the last step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step + 1 == trainer.max_steps:
            next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(float("nan"))


def test_no_model_is_made_of_weights_that_are_not_finite(data):
    with pytest.raises(ValueError, match="step 2: the weights are no longer finite"):
        fit(reward_module(), data(), LastGradient(), steps=2)


def test_a_model_in_bf16_is_not_trained_in_full(data):
    module = RewardModule(tiny_backbone("llama", False, {"vocab_size": 320}, dtype="bfloat16"))
    with pytest.raises(ValueError, match="round most updates of a fully trained model away; set it to float32"):
        fit(module, data())


def test_two_terms_of_one_name_are_an_error_that_names_it(data):
    with pytest.raises(ValueError, match="two terms of the loss are named 'spread'"):
        fit(reward_module(), data(), Spread(), ScoreL2(name="spread"))
    for taken in ("loss", "preference", "margin", "gradient_norm"):
        with pytest.raises(ValueError, match=f"'{taken}'"):
            fit(reward_module(), data(), ScoreL2(0.1, name=taken))
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `ScoreL2`"):
        trainer(ScoreL2(0.1), ScoreL2(0.2))  # Lightning's own check comes first


def test_convex_weights_above_one_are_an_error_that_names_them(data):
    with pytest.raises(ValueError, match=r"convex weights sum to 1\.2.*text_generation.*direct_preference"):
        fit(reward_module(), data(), TextGeneration(0.6), DirectPreference(0.6, reference=False))


def test_a_term_that_is_not_finite_is_named_at_the_flush(data):
    made = trainer(RewardCentering(), Broken(), steps=4)
    with pytest.raises(ValueError, match=r"step 1: these terms are not finite: loss, spread \(rows 1, 2, 7, 10\);"):
        made.fit(reward_module(), data())
    assert made.logger.steps == []
    with pytest.raises(ValueError, match=r"step 1: these terms are not finite: loss, spread"):
        fit(reward_module(), data(), Broken(), steps=4, log_every_n_steps=2)


def test_a_regularizer_needs_a_module_that_takes_it(data):
    with pytest.raises(ValueError, match="spread: BoringModel takes no regularizers"):
        Spread().setup(trainer(), type("BoringModel", (L.LightningModule,), {})(), "fit")


def test_validation_runs_without_dropout(data):
    module, start = reward_module(dropout=0.5), Start()
    made = trainer(start)
    made.fit(module, data(eval_pairs=3))
    batch = next(iter(made.datamodule.val_dataloader()[0]))
    module.train()
    assert not torch.equal(module(batch).rewards_N, module(batch).rewards_N)
    first, second, other = (made.validate(module, data(eval_pairs=size), verbose=False) for size in (3, 3, 10))
    assert first == second
    for name, value in first[0].items():
        assert other[0][name] == pytest.approx(value, rel=1e-5)


def test_the_first_validation_is_whole_after_a_sanity_check(data):
    start = Start()
    fit(reward_module(), data(eval_pairs=2), start, steps=3, num_sanity_val_steps=2)
    assert start.packs == 5


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_grm_trains_on_every_architecture(architecture, lora, data):
    module, start = reward_module(architecture, lora), Start()
    logged = fit(module, data(), TextGeneration(0.01), DirectPreference(0.01), start)
    assert len(logged) == 2
    assert all(math.isfinite(value) for step in logged for value in step.values())
    assert logged[0]["train/direct_preference"] == pytest.approx(math.log(2), abs=1e-4)
    assert logged[1]["train/direct_preference"] != logged[0]["train/direct_preference"]
    weights = module.model.state_dict()
    trained = {name for name, value in module.model.named_parameters(remove_duplicate=False) if value.requires_grad}
    changed = {name for name, value in start.weights.items() if not torch.equal(value, weights[name])}
    assert changed <= trained
    assert any(name.startswith("head.") for name in changed)
    assert any(("lora_B" if lora else "mlp") in name for name in changed)
    assert not lora or all("lora_" in name or name.startswith("head.") for name in changed)


def test_a_frozen_backbone_stays_bit_identical_while_the_head_moves(data):
    module, start = reward_module(frozen=True), Start()
    fit(module, data(), start, steps=4)
    weights = module.model.state_dict()
    moved = {name for name, value in start.weights.items() if not torch.equal(value, weights[name])}
    assert moved
    assert all(name.startswith("head.") for name in moved)
    assert {name for name in weights if name.startswith("head.")} - moved <= {
        "head.summary.2.bias",
        "head.summary.bias",
    }


def test_margins_and_label_smoothing_change_the_loss(data):
    plain, margin, smooth = (
        fit(reward_module(**options), data(), steps=1)[0]["train/preference"]
        for options in ({}, {"use_margin": True}, {"label_smoothing": 0.2})
    )
    assert len({plain, margin, smooth}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"label_smoothing": 0.5}, "label_smoothing"), ({"warmup_ratio": 1.0}, "warmup_ratio")],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        reward_module(**options)


class Mean(Spread):
    """One that reduces what should stay a value a group."""

    def penalty(self, outputs, batch):
        return super().penalty(outputs, batch).mean()


def test_a_penalty_of_another_shape_is_named(data):
    with pytest.raises(ValueError, match=r"spread: penalty returned shape \(\), expected \(\d+,\)"):
        fit(reward_module(), data(), Mean())


@pytest.mark.filterwarnings("ignore:When using `Trainer:UserWarning")
def test_a_schedule_of_the_accumulation_is_refused(data):
    schedule = L.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    with pytest.raises(ValueError, match="accumulate_grad_batches changed"):
        fit(reward_module(), data(), schedule, steps=99, max_epochs=2)


def test_a_ramp_that_will_exceed_one_is_an_error_before_the_first_step(data):
    with pytest.raises(ValueError, match=r"convex weights sum to 1\.5"):
        fit(reward_module(), data(), TextGeneration(Ramp(0.0, 1.5, 100)))


class Hungry(Spread):
    """One that asks for an exabyte in the third step."""

    def penalty(self, outputs, batch):
        if batch.step == 2:
            torch.empty(2**60, dtype=torch.uint8)
        return super().penalty(outputs, batch)


def test_a_run_that_does_not_fit_says_what_would_and_where_to_go_on(data, tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    with pytest.raises(ValueError, match="^out of memory after step 2") as error:
        fit(reward_module(), data(), Hungry(), checkpoints, steps=9, enable_checkpointing=True)
    text = str(error.value)
    assert "\n" not in text
    assert (
        "first: trainer.accumulate_grad_batches: 2 (the same result from 2 instead of 4 pairs at once); backb" in text
    )
    assert f"go on from the last checkpoint with --ckpt_path {tmp_path / 'last.ckpt'}" in text
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


def test_an_evaluation_that_does_not_fit_names_its_own_setting(data):
    module = reward_module()
    made = trainer()
    made.fit(module, data())
    module.model.register_forward_hook(lambda *_: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(ValueError, match="out of memory.*eval_pairs"):
        made.validate(module, data(), verbose=False)


class Slow(L.Callback):
    """Takes its time where a checkpoint would be written, and in validation."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(0.4)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        time.sleep(0.4)


def test_speed_leaves_out_validation_and_what_callbacks_do_after_a_step(data):
    start = time.perf_counter()
    (line,) = fit(reward_module(), data(), Slow(), steps=3, log_every_n_steps=3, check_val_every_n_epoch=1)
    spent = time.perf_counter() - start
    training = 12 / line["speed/pairs_per_second"]
    assert 0 < training < spent - 1.2


def test_on_nonfinite_is_stop_or_skip():
    with pytest.raises(ValueError, match="on_nonfinite must be 'stop' or 'skip', got 'ignore'"):
        reward_module(on_nonfinite="ignore")
