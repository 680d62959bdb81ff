"""Reference log-probs of a run: whose they are, when they are computed again, and what is said."""

import json
import logging
import shutil

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from grmlight import PairDataModule, RewardModule
from grmlight.data import GroupLoader, PrepareOptions, prepare
from grmlight.data.sidecar import Sidecar
from grmlight.models import HeadConfig, RewardModel, Signal
from grmlight.regularizers import DirectPreference, TextGeneration
from tests.tiny_models import tiny_backbone

HEAD = HeadConfig(width=16, dropout=0.0)


@pytest.fixture(scope="module")
def material(tmp_path_factory, byte_tokenizer):
    """Two files of pairs, as many in each."""
    folder = tmp_path_factory.mktemp("material")
    for name in ("one", "two"):
        rows = [{"prompt": f"why {name} {i}?", "chosen": "so " * (1 + i % 4), "rejected": f"not {i}"} for i in range(7)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, str(byte_tokenizer)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(material):
    def make(name="one"):
        folder, tokenizer = material
        return PairDataModule(train=str(folder / f"{name}.jsonl"), tokenizer=tokenizer, pairs_per_step=3)

    return make


@pytest.fixture
def said():
    """What was said about reference log-probs."""
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            if "reference" in record.getMessage():
                lines.append(record.getMessage())

    handler = Handler()
    logging.getLogger("lightning.pytorch").addHandler(handler)
    yield lines
    logging.getLogger("lightning.pytorch").removeHandler(handler)


class Step(L.Callback):
    """Keeps the packs and the penalty's inputs of training."""

    def __init__(self):
        self.batches, self.differences = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with torch.no_grad():
            found = pl_module(batch, frozenset({Signal.LOGPS, Signal.REFERENCE_LOGPS}))
        self.batches.append(batch)
        self.differences.append((found.logps_N - found.reference_logps_N).abs().max().item())


def module(seed=0, kind=RewardModule, lora=False, frozen=False, config=None, **options):
    adamw = {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)}
    backbone = tiny_backbone("llama", lora, {"vocab_size": 320} | (config or {}), frozen=frozen)
    return kind(backbone, HEAD, seed=seed, warmup_ratio=0.0, **adamw | options)


def fit(model, data, *callbacks, steps=1, **options):
    callbacks = callbacks or (DirectPreference(0.5),)
    made = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        callbacks=[*callbacks],
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    made.fit(model, **data if isinstance(data, dict) else {"datamodule": data})
    return model


def kept(cache):
    return sorted(cache.rglob("reference_logps-*"))


@pytest.mark.parametrize("packing", ["auto", "never"])
def test_the_values_are_those_of_a_frozen_copy(packing, data, material):
    pairs, dropout = data(), {"attention_dropout": 0.3}
    fit(module(packing=packing, config=dropout), pairs)
    copy = RewardModel(tiny_backbone(config={"vocab_size": 320} | dropout), HEAD, reference=True, packing=packing)
    folder, tokenizer = material
    prepared = prepare(str(folder / "one.jsonl"), tokenizer, PrepareOptions())
    (batch,) = GroupLoader(prepared.store, len(prepared.store))
    expected = copy(batch, frozenset({Signal.REFERENCE_LOGPS})).reference_logps_N
    np.testing.assert_allclose(pairs.reference_logps["train"].values_N, expected.numpy(), rtol=1e-5, atol=1e-5)
    assert pairs.reference_logps["train"].values_N.dtype == np.float32


def test_no_second_model_is_held(data):
    stored, copied = fit(module(), data()), fit(module(reference="copy"), data())
    plain = fit(module(), data(), TextGeneration(0.1))

    def held(each):
        return sum(parameter.numel() for parameter in each.parameters())

    assert held(stored) == held(plain)
    assert held(copied) == held(plain) + sum(parameter.numel() for parameter in plain.model.lm.parameters())


@pytest.mark.parametrize("kind", [{"lora": True}, {"frozen": True}, {"reference": "copy"}])
def test_nothing_is_kept_where_the_model_can_compute_them(kind, data, cache, said):
    steps, pairs = Step(), data()
    fit(module(**kind), pairs, DirectPreference(0.5), steps)
    assert not pairs.reference_logps
    assert steps.batches[0].reference_logps_N is None
    assert steps.differences[0] < 1e-4
    assert kept(cache) == said == []


def test_no_pass_without_a_regularizer_that_asks(data, cache):
    for callback in (DirectPreference(0.5, reference=False), DirectPreference(0.0), TextGeneration(0.1)):
        pairs = data()
        fit(module(), pairs, callback)
        assert not pairs.reference_logps
    assert kept(cache) == []


def test_what_was_found_in_one_run_is_not_carried_into_the_next(data):
    """One DataModule, two modules: the second one's reference is its own."""
    pairs = data()
    fit(module(), pairs)
    steps = Step()
    fit(module(seed=1, lora=True), pairs, DirectPreference(0.5), steps)
    assert steps.batches[0].reference_logps_N is None
    assert steps.differences[0] < 1e-4
    steps = Step()
    fit(module(seed=1), pairs, DirectPreference(0.5), steps)
    assert steps.differences[0] < 1e-4


def test_other_start_weights_are_computed_anew(data, cache, said):
    """A single weight, changed in its last bit."""

    class Nudged(RewardModule):
        def _build(self):
            model = super()._build()
            with torch.no_grad():
                weight = model.lm.lm_head.weight
                weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
            return model

    fit(module(), data())
    fit(module(seed=1), data())
    fit(module(kind=Nudged), data())
    assert len(kept(cache)) == 3
    fit(module(), data())
    assert len(kept(cache)) == 3
    assert [line.split(":")[1].split()[0] for line in said] == ["computed,", "computed,", "computed,", "found"]


def test_two_data_sets_do_not_mix(data, cache):
    one, two = data("one"), data("two")
    fit(module(), one)
    fit(module(), two)
    assert not np.array_equal(one.reference_logps["train"].values_N, two.reference_logps["train"].values_N)
    first, second = kept(cache)
    assert first.parent != second.parent
    assert first.name != second.name


@pytest.mark.parametrize("damage", ["cut", "length", "foreign"])
def test_a_file_that_does_not_fit_is_replaced_with_a_visible_line(damage, data, cache, said):
    pairs = data()
    fit(module(), pairs)
    expected = pairs.reference_logps["train"].values_N
    (path,) = kept(cache)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "foreign":
        fit(module(), data("two"))
        (foreign,) = set(kept(cache)) - {path}
        shutil.copy(foreign, path)
    else:
        with safe_open(path, framework="numpy") as file:
            entries, values_N = file.metadata(), file.get_tensor("values")
        save_file({"values": values_N[:-1]}, path, entries)
    said.clear()
    again = data()
    fit(module(), again)
    assert np.array_equal(again.reference_logps["train"].values_N, expected)
    assert len(said) == 2
    assert str(path) in said[0]
    assert said[0].endswith("; computing it again")
    assert "computed, and kept" in said[1]


def test_a_model_validated_first_has_the_same_reference(data, material):
    folder, _ = material
    pairs = data()
    pairs.val = str(folder / "two.jsonl")
    model = module()
    L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False).validate(
        model, pairs, verbose=False
    )
    assert not pairs.reference_logps
    steps = Step()
    fit(model, pairs, DirectPreference(0.5), steps)
    assert steps.differences[0] < 1e-4


def test_a_module_that_was_trained_keeps_its_reference_or_says_that_it_cannot(data, said):
    model, pairs, penalty = module(), data(), DirectPreference(0.5)
    fit(model, pairs, penalty, steps=4)
    expected = pairs.reference_logps["train"].values_N
    fit(model, pairs, penalty)
    assert np.array_equal(pairs.reference_logps["train"].values_N, expected)
    assert "found in" in said[-1]
    with pytest.raises(ValueError, match="its start weights are gone; make a new module"):
        fit(model, data("two"), penalty)


def test_a_checkpoint_of_other_start_weights_is_refused(data, tmp_path):
    path = tmp_path / "a.ckpt"

    class Save(L.Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.save_checkpoint(path)

    fit(module(), data(), DirectPreference(0.5), Save())
    with pytest.raises(ValueError, match="start weights"):
        fit(module(seed=1), {"datamodule": data(), "ckpt_path": path}, steps=2)
    fit(module(), {"datamodule": data(), "ckpt_path": path}, steps=2)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_loaders_without_a_data_module_need_a_copy(data):
    pairs = data()
    pairs.setup("fit")
    loader = {"train_dataloaders": pairs.train_dataloader()}
    with pytest.raises(ValueError, match="reference='copy'"):
        fit(module(), loader)
    fit(module(reference="copy"), loader)


def test_a_folder_that_cannot_be_written_is_said_before_the_pass(data, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    class Untouched(RewardModule):
        def _build(self):
            model = super()._build()
            model.register_forward_pre_hook(lambda *_: pytest.fail("the pass has begun"))
            return model

    monkeypatch.setattr(Sidecar, "check_writable", refuse)
    with pytest.raises(ValueError, match="cannot be kept there .Permission denied.; make it writable.*copy") as caught:
        fit(module(kind=Untouched), data())
    assert "\n" not in str(caught.value)


def test_a_log_prob_that_is_not_finite_names_the_row(data, cache):
    class Broken(RewardModule):
        def _build(self):
            model = super()._build()
            with torch.no_grad():
                model.lm.lm_head.weight.fill_(torch.nan)
            return model

    with pytest.raises(ValueError, match=r"one\.jsonl: row 1 has a log-prob under the start model that is not finite"):
        fit(module(kind=Broken), data())
    assert kept(cache) == []


def test_an_unknown_place_is_named():
    with pytest.raises(ValueError, match="reference must be 'store' or 'copy', got 'disk'"):
        module(reference="disk")
