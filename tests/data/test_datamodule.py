"""PairDataModule: named sets, what each stage needs, and what it says when that is missing."""

import json

import lightning.pytorch as L
import pytest
from lightning.pytorch.trainer.states import TrainerFn

from grmlight.data import PairDataModule, PrepareOptions, TrainingLoader


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path):
    """Three files of 20, 7 and 5 pairs."""

    def write(name, count):
        rows = [{"prompt": f"why {i}", "chosen": f"{name} {i}", "rejected": "no"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / f"{name}.jsonl")

    return {"train": write("train", 20), "a": write("a", 7), "b": write("b", 5)}


def trainer(stage, **options):
    made = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", **options)
    made.state.fn = {"fit": TrainerFn.FITTING, "validate": TrainerFn.VALIDATING, "test": TrainerFn.TESTING}[stage]
    return made


def pairs_of(loader):
    return sum(int(batch.count_G.sum()) for batch in loader)


def test_sets_have_names(files, byte_tokenizer):
    data = PairDataModule(
        files["train"], val={"easy": files["a"], "hard": files["b"]}, tokenizer=str(byte_tokenizer), eval_pairs=4
    )
    data.setup()
    assert list(data.prepared) == ["train", "easy", "hard"]
    assert [pairs_of(loader) for loader in data.val_dataloader()] == [7, 5]
    assert [len(loader) for loader in data.val_dataloader()] == [2, 2]
    assert pairs_of(data.train_dataloader()) == 20
    assert list(data.test_sources) == ["easy", "hard"]
    assert [pairs_of(loader) for loader in data.predict_dataloader()] == [7, 5]


def test_a_single_set_is_named_after_its_stage(files, byte_tokenizer):
    data = PairDataModule(val=files["a"], test=files["b"], tokenizer=str(byte_tokenizer))
    assert (data.val_sources, data.test_sources) == ({"val": files["a"]}, {"test": files["b"]})
    data.setup("test")
    assert list(data.prepared) == ["test"]


@pytest.mark.parametrize(
    ("stage", "sources", "message"),
    [
        ("fit", {"val": "x"}, "nothing to train on; set data.init_args.train"),
        ("validate", {"train": "x"}, "nothing to validate on; set data.init_args.val"),
        ("test", {"train": "x"}, "nothing to test on"),
        ("predict", {}, "nothing to predict on"),
    ],
)
def test_a_stage_without_its_data_is_said(stage, sources, message):
    with pytest.raises(ValueError, match=message):
        PairDataModule(**sources, tokenizer="t").sources(stage)


def test_no_tokenizer_is_said(files):
    with pytest.raises(ValueError, match=r"no tokenizer is named; set data\.init_args\.tokenizer"):
        PairDataModule(files["train"]).setup("fit")


@pytest.mark.parametrize("where", ["val", "test"])
def test_no_set_may_take_the_name_of_the_training_pairs(where, files, byte_tokenizer):
    data = PairDataModule(files["train"], **{where: {"train": files["a"]}}, tokenizer=str(byte_tokenizer))
    with pytest.raises(ValueError, match=rf"data\.init_args\.{where}.*'train'"):
        data.setup()


def test_a_test_set_may_have_the_name_of_a_validation_set(files, byte_tokenizer):
    data = PairDataModule(files["train"], {"a": files["a"]}, {"a": files["b"]}, tokenizer=str(byte_tokenizer))
    data.setup("fit")
    assert pairs_of(data.val_dataloader()[0]) == 7
    data.setup("test")
    assert pairs_of(data.test_dataloader()[0]) == 5


def test_evaluation_sets_are_read_whole_and_with_their_own_labels(files, byte_tokenizer):
    options = PrepareOptions(stride=2, offset=1, limit=5, flip=1.0)
    data = PairDataModule(files["train"], files["a"], tokenizer=str(byte_tokenizer), prepare=options)
    data.setup("fit")
    rows = {name: data.prepared[name].store.rows() for name in ("train", "val")}
    assert [row["row"] for row in rows["train"]] == [3, 5, 7, 9, 11]
    assert all(row["flipped"] for row in rows["train"])
    assert [row["row"] for row in rows["val"]] == list(range(1, 8))
    assert not any(row["flipped"] for row in rows["val"])


def test_the_loader_follows_the_trainer(files, byte_tokenizer):
    data = PairDataModule(files["train"], files["a"], tokenizer=str(byte_tokenizer), pairs_per_step=6, seed=3)
    data.trainer = trainer("fit", accumulate_grad_batches=3)
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    assert isinstance(loader, TrainingLoader)
    assert (loader.packs, loader.ranks, loader.rank, loader.pairs_per_step, loader.seed) == (3, 1, 0, 6, 3)
    assert len(loader) == 12
    (evaluation,) = data.val_dataloader()
    assert (evaluation.packs, evaluation.seed) == (1, None)


def test_a_tokenizer_is_trained_on_the_training_pairs(files):
    data = PairDataModule(files["train"], files["a"], tokenizer="train:300")
    data.setup("fit")
    assert "tokenizers" in data.tokenizer
    assert pairs_of(data.val_dataloader()[0]) == 7
    again = PairDataModule(files["train"], files["a"], tokenizer="train:300")
    again.setup("validate")
    assert again.tokenizer == data.tokenizer


@pytest.mark.parametrize("name", ["train:", "train:12", "train:many"])
def test_a_tokenizer_of_a_bad_size_is_said(name, files):
    with pytest.raises(ValueError, match="at least 300"):
        PairDataModule(files["train"], tokenizer=name).setup("fit")


def test_a_missing_file_is_named(files, byte_tokenizer):
    data = PairDataModule(files["train"], "missing.jsonl", tokenizer=str(byte_tokenizer))
    with pytest.raises(ValueError, match=r"missing\.jsonl: no such file"):
        data.setup("fit")
