"""Published numbers: what can be recomputed is, and each says where it comes from."""

import pytest

from grmlight.evaluation.published import COLUMNS, Setting, published_rows, row_beside, setting_of
from grmlight.evaluation.published_recipe import differences

ROWS = published_rows()
WHOLE = [row for row in ROWS if row.table == "rewardbench" and None not in row.values.values()]
RELEASED = {
    "GRM_Llama3.1_8B_rewardmodel-ft": 92.6,
    "GRM-Llama3-8B-rewardmodel-ft": 91.5,
    "GRM-Llama3.2-3B-rewardmodel-ft": 90.9,
    "GRM-gemma2-2B-rewardmodel-ft": 88.4,
    "GRM-llama3-8B-sftreg": 87.0,
    "GRM-llama3.2-3B-sftreg": 85.8,
    "GRM-Gemma-2B-rewardmodel-ft": 84.7,
    "GRM-Gemma2-2B-sftreg": 81.0,
    "GRM-Gemma-2B-sftreg": 75.3,
    "Gemma-2B-rewardmodel-baseline": 73.7,
}


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: f"{row.label}, {row.number}")
def test_averages_are_the_means_of_their_sections(row):
    *sections, average = row.values.values()
    assert sum(sections) / 4 == pytest.approx(average, abs=0.06)


def test_the_ten_released_models_are_there():
    found = {row.label: row.values["average"] for row in WHOLE}
    assert {label: found[label] for label in RELEASED} == RELEASED


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}, {row.label}, {row.number}")
def test_every_number_has_a_source_and_is_a_percentage(row):
    assert tuple(row.values) == COLUMNS[row.table]
    found = [value for value in row.values.values() if value is not None]
    assert all(20 < value < 100 for value in found)
    assert bool(found) != row.source.startswith("not found")


def test_no_setting_has_two_rows_of_one_table():
    keys = [
        (row.table, row.setting)
        for row in ROWS
        if row.number not in {"released", "Table 5"} and "*" not in row.setting.method
    ]
    assert len(set(keys)) == len(keys)


def test_rows_that_are_equal_in_all_cells_say_so():
    """A slip in copying looks like this; in no other way are two rows of sections the same."""
    for row in WHOLE:
        twins = [other for other in WHOLE if other is not row and other.values == row.values]
        assert bool(twins) == row.note.startswith("the rows of GRM, DPO at 40K and GRM, SFT at 400K are equal")


def test_a_row_of_the_method_comes_before_the_one_that_says_that_there_is_none():
    mistral = Setting("Mistral-7B-Instruct-v0.2", "400K", "baseline", head="linear")
    assert row_beside("rewardbench", mistral).values["average"] == 76.3
    assert row_beside("preference", mistral).values["hhh"] is None
    assert row_beside("preference", Setting("Mistral-7B-Instruct-v0.2", "mine", "baseline")) is None
    noisy = Setting("gemma-2b-it", "40K", "grm_sft", 0.25)
    assert row_beside("preference", noisy).values["hhh"] == 76.0
    assert row_beside("sets", noisy) is None
    assert row_beside("preference", None) is None


@pytest.mark.parametrize(
    ("model", "callbacks", "method", "head"),
    [
        ({}, [], "baseline", "mlp"),
        ({"head": "linear"}, None, "baseline", "linear"),
        ({"head": {"kind": "linear"}, "use_margin": True}, [], "margin", "linear"),
        ({"label_smoothing": 0.1}, [], "label_smoothing", "mlp"),
        ({"ensemble": {"size": 3, "aggregation": "wco"}}, [], "ensemble_min", "mlp"),
        ({"backbone": {"name": "google/gemma-2b-it", "frozen": True}}, [], "frozen", "mlp"),
        ({}, [("TextGeneration", {"form": "log_sigmoid"})], "grm_sft", "mlp"),
        ({}, [("TextGeneration", {"form": "nll"})], "TextGeneration", "mlp"),
        ({}, [("DirectPreference", {"reference": True})], "grm_dpo", "mlp"),
        ({}, [("DirectPreference", {"reference": False})], "grm_dpo_noref", "mlp"),
        ({"use_margin": True}, [("TextGeneration", {}), ("ScoreL2", {})], "grm_sft+ScoreL2+margin", "mlp"),
    ],
)
def test_a_setting_is_read_off_a_configuration(model, callbacks, method, head):
    listed = [{"class_path": f"grmlight.regularizers.{name}", "init_args": given} for name, given in callbacks or []]
    config = {
        "trainer": {"callbacks": listed if callbacks is not None else None},
        "model": {"init_args": {"backbone": "models/gemma-2b-it/"} | model},
        "data": {"init_args": {"train": "llm-blender/Unified-Feedback@all:train", "prepare": {"stride": 2}}},
    }
    assert setting_of(config) == Setting("gemma-2b-it", "400K", method, 0.0, head)


def test_other_data_has_its_own_name():
    config = {
        "model": {"init_args": {"backbone": "x/lm"}},
        "data": {"init_args": {"train": "hendrydong/preference_700K:train"}},
    }
    assert setting_of(config).data == "preference_700K"
    config["data"]["init_args"] = {"train": "Unified-Feedback", "prepare": {"stride": 3}}
    assert setting_of(config).data == "Unified-Feedback, stride 3"
    assert setting_of({"model": {"init_args": {"backbone": "x"}}, "data": {"init_args": {"world": 0}}}) is None
    assert setting_of({}) is None


def recipe(lora=True):
    """What `config.yaml` has of the authors' recipes."""
    adapters = {"r": 32, "alpha": 64, "dropout": 0.05} if lora else None
    prepare = {"max_length": 1024 if lora else 3000}
    optimizer = {"init_args": {"lr": 1e-5 if lora else 5e-6}}
    sft = {"class_path": "grmlight.regularizers.TextGeneration", "init_args": {"weight": 0.01, "beta": 0.1}}
    benchmarks = {"class_path": "grmlight.evaluation.Benchmarks", "init_args": {"weight": 3}}
    trainer = {"max_epochs": 2 if lora else 1, "max_steps": -1, "limit_train_batches": None}
    return {
        "trainer": trainer | {"callbacks": [sft, benchmarks]},
        "model": {"init_args": {"backbone": {"frozen": False, "lora": adapters}, "optimizer": optimizer}},
        "data": {"init_args": {"pairs_per_step": 24 if lora else 256, "prepare": prepare}},
    }


def test_a_run_of_the_recipe_differs_in_nothing():
    assert differences("Table 2", recipe()) == []
    assert differences("Table 5", recipe(lora=False)) == []
    assert differences("released", recipe()) is None
    assert differences("Table 1", {}) == []
    frozen = recipe()
    frozen["model"]["init_args"]["backbone"] = {"frozen": True, "lora": None}
    assert differences("Table 2", frozen) == []
    whole = recipe()
    whole["trainer"]["limit_train_batches"] = 1.0
    assert differences("Table 2", whole) == []


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("trainer.max_steps", 5, "max_steps -1, here 5"),
        ("trainer.max_epochs", 1, "epochs 2, here 1"),
        ("trainer.limit_train_batches", 1, "limit_train_batches none, here 1"),
        ("trainer.limit_train_batches", 0.5, "limit_train_batches none, here 0.5"),
        ("model.init_args.optimizer.init_args.lr", 1e-3, "learning rate 1e-05, here 0.001"),
        ("model.init_args.backbone.lora", None, "LoRA some, here none"),
        ("model.init_args.backbone.lora.r", 8, "LoRA rank 32, here 8"),
        ("model.init_args.backbone", "google/gemma-2b-it", "LoRA some, here none"),
        ("model.init_args.ensemble", {"members": "heads"}, "members of the ensemble models, here heads"),
        ("data.init_args.pairs_per_step", 8, "pairs a step 24, here 8"),
        ("data.init_args.prepare.max_length", 512, "longest pair 1024, here 512"),
    ],
)
def test_what_differs_from_the_recipe_is_said(place, value, said):
    config = recipe()
    *path, last = place.split(".")
    inner = config
    for key in path:
        inner = inner[key]
    inner[last] = value
    assert differences("Table 2", config) == [said]


def test_the_weight_of_the_regularizer_is_compared():
    config = recipe()
    config["trainer"]["callbacks"][0]["init_args"]["weight"] = 0.5
    assert differences("Table 1", config) == ["weight 0.01, here 0.5"]
