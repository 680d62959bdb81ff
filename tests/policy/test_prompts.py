"""Prompts from files, and their deal to steps and ranks."""

import gzip
import json
import logging

import lightning.pytorch as L
import pytest
import torch

from grmlight.cli import main
from grmlight.data.options import PrepareOptions
from grmlight.lab import GoldReward, Split, WorldPrompts, world_files
from grmlight.lab.prompts import distinct_prompts
from grmlight.lab.world import Prompt
from grmlight.models.backbone import BackboneConfig
from grmlight.policy import PromptDataModule
from grmlight.policy.prompts import PromptLoader, TrainingPromptLoader
from grmlight.policy.read_prompts import numbered_prompts, read_prompts

TALK = [{"role": "system", "content": "be"}, {"role": "user", "content": "who"}]
COUNT = 37


def _write(path, *rows):
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines(tmp_path, suffix):
    path = _write(tmp_path / f"p{suffix}", {"prompt": "why", "id": 3}, "\n", {"prompt": TALK}, {"prompt": "why"})
    assert read_prompts(path) == ["why", tuple(TALK), "why"]
    assert [each.row for each in numbered_prompts(path)] == [1, 3, 4]


def test_lines_of_text(tmp_path):
    path = _write(tmp_path / "p.txt", "tell me\n", "\n", ' {"prompt": "x"}\n', "last")
    assert [(each.row, each.prompt) for each in numbered_prompts(path)] == [
        *((1, "tell me"), (3, ' {"prompt": "x"}'), (4, "last"))
    ]


def test_the_prompts_of_pairs(tmp_path, caplog):
    rows = (
        {"prompt": "why", "chosen": "a", "rejected": "b"},
        {"prompt": "who", "chosen": "a", "rejected": "a"},
        {"prompt": TALK, "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"},
        {"prompt": "how", "responses": ["a", "b", "c"], "ratings": [1, 1, 2]},
    )
    with caplog.at_level(logging.WARNING, "grmlight"):
        assert read_prompts(_write(tmp_path / "p.jsonl", *rows)) == ["why", tuple(TALK), "how"]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/p.jsonl: 1 of 4 rows are no usable pairs (1 identical), the first is row 2; "
        "their prompts are left out"
    ]
    assert len(read_prompts(str(world_files().train))) == 1000


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("p.jsonl", [{"prompt": "a"}, "tell me\n"], "row 2 is no JSON object; give JSON lines"),
        ("p.jsonl", ["\n", "[1]\n"], "row 2 is no JSON object"),
        ("p.jsonl", [{"prompt": "a"}, {"prompt": " "}], "row 2 has an empty prompt"),
        ("p.jsonl", [{"prompt": []}], "row 1 has an empty prompt"),
        ("p.jsonl", [{"prompt": "a"}, {"text": "b"}], r"row 2 has no `prompt` \(its columns: text\)"),
        ("p.jsonl", [{"prompt": [*TALK, {"role": "assistant", "content": "x"}]}], "row 1 has a prompt that is none"),
        ("p.jsonl", [{"prompt": 3}], "row 1 has a prompt that is none"),
        ("p.jsonl", [{"chosen": "ab", "rejected": "ac"}], "row 1 holds whole texts without a prompt"),
        ("p.jsonl", [{"prompt": "a"}, {"prompt": "b\ud800"}], r"row 2 holds half a character \(a lone surrogate\)"),
        ("p.jsonl", [{"prompt": [{"role": "user", "content": "\udc00"}]}], "row 1 holds half a character"),
        ("p.jsonl", [], "holds no prompts"),
        ("p.txt", ["\n"], "holds no prompts"),
    ],
)
def test_rows_that_are_no_prompts_are_named(tmp_path, name, rows, message):
    with pytest.raises(ValueError, match=f"{name}: {message}") as error:
        read_prompts(_write(tmp_path / name, *rows))
    assert "\n" not in str(error.value)


def test_files_of_another_kind_are_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "x"}\n' * 999)[:-20])
    for name, message in (
        *(("model.safetensors", "row 1 is no JSON object"), ("p.txt", "is no text in UTF-8")),
        *(("p.jsonl.gz", "is cut off or no gzip file"), ("none.jsonl", "no such file"), ("none.txt", "no such file")),
    ):
        with pytest.raises(ValueError, match=message):
            read_prompts(str(tmp_path / name))


def _loader(rank=0, ranks=1, per_step=8, seed=3, kind=TrainingPromptLoader):
    prompts = [f"prompt {number}" for number in range(COUNT)]
    return kind(prompts, [1 + number * 7 % 19 for number in range(COUNT)], per_step, seed, rank, ranks)


def _steps(loaders):
    """For each step its prompts by their numbers, over all ranks."""
    steps = []
    for batches in zip(*loaders, strict=True):
        assert len({(batch.step, batch.epoch, batch.prompts_in_step) for batch in batches}) == 1
        counted = [
            (number, prompt)
            for batch in batches
            for number, prompt, count in zip(batch.numbers, batch.prompts, batch.counts, strict=True)
            if count
        ]
        assert len(counted) == batches[0].prompts_in_step
        assert all(batch.prompts for batch in batches)
        steps.append(dict(counted))
    return steps


@pytest.mark.parametrize("ranks", [2, 3, 8, 11])
def test_a_steps_prompts_are_the_same_for_any_number_of_ranks(ranks):
    alone, shared = [_loader()], [_loader(rank, ranks) for rank in range(ranks)]
    for epoch in range(2):
        expected = _steps(alone)
        assert _steps(shared) == expected, epoch
        assert sorted(prompt for step in expected for prompt in step.values()) == sorted(alone[0].prompts)
    assert _steps([_loader()]) != _steps(alone), "each epoch has an order of its own"


def test_shares_are_balanced():
    shares = [next(iter(_loader(rank, 4, per_step=36))) for rank in range(4)]
    costs = {f"prompt {number}": 1 + number * 7 % 19 for number in range(COUNT)}
    loads = [sum(costs[prompt] for prompt in share.prompts) for share in shares]
    assert max(loads) - min(loads) <= 3


@pytest.mark.parametrize("done", [1, 4, 5, 7])
def test_resuming_goes_on_with_the_next_step(done):
    loader = _loader()
    taken, state = [], None
    while len(taken) < done:
        for batch in loader:
            taken.append(batch)
            state = loader.state_dict()
            if len(taken) == done:
                break
    again = _loader()
    again.load_state_dict(json.loads(json.dumps(state)))
    uninterrupted = _loader()
    whole = [batch for _ in range(3) for batch in uninterrupted]
    assert taken == whole[:done]
    assert [batch for _ in range(2) for batch in again][:5] == whole[done : done + 5]


def test_another_order_is_refused():
    state = _loader().state_dict()
    for options in ({"per_step": 9}, {"seed": 4}):
        with pytest.raises(ValueError, match="the checkpoint was written with"):
            _loader(**options).load_state_dict(state)
    with pytest.raises(ValueError, match="prompts_per_step must be at least 1"):
        _loader(per_step=0)


def test_evaluation_begins_at_the_beginning():
    loader = _loader(seed=None, kind=PromptLoader)
    first = next(iter(loader))
    assert next(iter(loader)) == first
    assert first.prompts[:2] == ("prompt 0", "prompt 1")


def test_the_data_module_leaves_out_what_cannot_be_answered(tmp_path, byte_tokenizer, capsys):
    rows = [{"prompt": "who " * (1 + 9 * (number in (3, 7)))} for number in range(12)]
    train, val = _write(tmp_path / "p.jsonl", *rows), _write(tmp_path / "v.txt", "why\nwho\n")
    options = PrepareOptions(max_length=40)
    data = PromptDataModule(train, {"more": val}, str(byte_tokenizer), options, max_new_tokens=16, prompts_per_step=4)
    data.setup("fit")
    assert capsys.readouterr().out == (
        f"train: {train}: 12 prompts read, 10 used, 2 refused\n  refused 2: over length (rows 4, 8)\n"
        f"more: {val}: 2 prompts read, 2 used, 0 refused\n"
    )
    assert len(data.train_dataloader()) == 3
    (evaluation,) = data.val_dataloader()
    assert [batch.prompts for batch in evaluation] == [("why", "who")]
    with pytest.raises(
        ValueError, match="none of the prompts can be used: train: .*12 prompts read, 0 used, 12 refused"
    ):
        PromptDataModule(train, None, str(byte_tokenizer), PrepareOptions(max_length=18), 16).setup("fit")
    with pytest.raises(ValueError, match="no prompts to train on"):
        PromptDataModule(val=val, tokenizer=str(byte_tokenizer)).setup("fit")
    with pytest.raises(ValueError, match="no tokenizer is named"):
        PromptDataModule(train).setup("fit")


class Policy(L.LightningModule):
    """Has a backbone of 32 positions, as policies in training say it."""

    backbone = BackboneConfig("package:grmlight.lab/assets/lm", config={"max_position_embeddings": 32})


def test_prompts_leave_room_within_the_policys_positions(tmp_path, byte_tokenizer):
    rows = [{"prompt": "who " * (1 + 9 * (number in (3, 7)))} for number in range(12)]
    data = PromptDataModule(_write(tmp_path / "p.jsonl", *rows), None, str(byte_tokenizer), max_new_tokens=16)
    data.setup("fit")
    assert data.reports["train"]["used"] == 12
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    data.trainer.strategy._lightning_module = Policy()
    data.setup("fit")
    assert data.reports["train"] == data.reports["train"] | {"used": 10, "refused": {"over_length": [4, 8]}}


def test_the_worlds_prompts():
    data = WorldPrompts(prompts=100, val_prompts=20)
    data.setup("fit")
    train, val = data.prompts["train"], data.prompts["val"]
    assert (len(set(train)), len(set(val)), len(set(train) & set(val))) == (100, 20, 0)
    assert all(Split.ID.holds(Prompt.parse(prompt)) for prompt in (*train, *val))
    assert GoldReward()._gold.score(train[0], "cat red") < 5
    more = WorldPrompts(prompts=130, val_prompts=20)
    more.setup("fit")
    assert more.prompts["val"] == val
    assert more.prompts["train"][:100] == train
    other = WorldPrompts(prompts=30, val_prompts=0, split="ood_all")
    other.setup("fit")
    assert all(Split.OOD_ALL.holds(Prompt.parse(prompt)) for prompt in other.prompts["train"])
    assert other.val_dataloader() == []
    count = len(list(distinct_prompts(0, Split.ID)))
    with pytest.raises(ValueError, match=f"has {count} prompts, not {count + 1}; ask for fewer"):
        WorldPrompts(prompts=count, val_prompts=1).setup("fit")


class Noting(L.LightningModule):
    """Notes the prompts of its steps."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        optimizer = self.optimizers()
        self.manual_backward(self.weight * 1.0)
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_goes_on_where_it_stopped(tmp_path):
    def run(steps, **options):
        module = Noting()
        trainer = L.Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, WorldPrompts(prompts=40, prompts_per_step=16), **options)
        return trainer, module.seen

    _, whole = run(8)
    assert [(batch.epoch, batch.step) for batch in whole[:4]] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    trainer, first = run(5)
    trainer.save_checkpoint(tmp_path / "five.ckpt")
    _, rest = run(8, ckpt_path=tmp_path / "five.ckpt", weights_only=True)
    assert [*first, *rest] == whole


@pytest.mark.filterwarnings("ignore")
def test_the_command_line_takes_prompts_by_their_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(
            [
                "fit",
                "--model",
                "grmlight.RewardModule",
                "--model.backbone",
                "package:grmlight.lab/assets/lm",
                "--data",
                "grmlight.policy.PromptDataModule",
                "--data.train",
                "none.txt",
                "--data.tokenizer",
                "package:grmlight.lab/assets/lm",
            ]
        )
    assert "none.txt: no such file" in str(end.value)
