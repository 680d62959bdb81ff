"""Experts on benchmarks and files: routed as in training, and what no task is, is counted in the open."""

import json

import pytest

from grmlight import PairDataModule
from grmlight.cli import main
from grmlight.data.options import PrepareOptions
from grmlight.data.texts import TextGroup
from grmlight.evaluation import Benchmarks, ModelScorer, open_scorer
from grmlight.export import save_model
from grmlight.training.phases import Phase, Phases
from tests.models.test_experts import awake
from tests.test_experts import TASKS, experts_module, rows, trainer
from tests.tiny_models import tiny_backbone

SHORT = Phases(Phase(steps=2), Phase(steps=1), Phase(steps=1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, byte_tokenizer):
    """A model of either routing, and 12 pairs of which the first three are of no task."""
    folder = tmp_path_factory.mktemp("experts")
    for routing in ("given", "classifier"):
        backbone = tiny_backbone("llama", lora=True, config={"vocab_size": 320, "max_position_embeddings": 2048})
        model = awake(routing=routing, backbone=backbone, tasks=TASKS)
        save_model(model, folder / routing, str(byte_tokenizer), PrepareOptions())
    lines = [json.dumps(row) + "\n" for row in rows(12, 3, unseen=3)]
    (folder / "odd.jsonl").write_text("".join(lines))
    (folder / "known.jsonl").write_text("".join(lines[3:]))
    (folder / "poems.jsonl").write_text("".join(lines[:3]))
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(48, 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRMLIGHT_CACHE", str(folder / "cache"))
        yield folder


def groups(folder, **category):
    read = map(json.loads, (folder / "known.jsonl").read_text().splitlines())
    return [
        TextGroup(row["prompt"], (row["chosen"], row["rejected"]), category=category.get("category", row["category"]))
        for row in read
    ]


@pytest.mark.parametrize("budget", [1, 16_384])
def test_given_categories_route_text_as_they_route_a_store(budget, folders, tmp_path):
    main(["score", str(folders / "given"), str(folders / "known.jsonl"), f"--out={tmp_path / 'scores.jsonl'}"])
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    scorer = open_scorer(folders / "given")
    assert isinstance(scorer, ModelScorer)
    scorer.tokens_per_forward = budget
    for found, line in zip(scorer.score(groups(folders)), lines, strict=True):
        assert found == pytest.approx([line["chosen"], line["rejected"]], abs=1e-5)
    assert scorer.refused == {}
    other = scorer.score(groups(folders, category="chat"))
    assert any(found[0] != pytest.approx(line["chosen"], abs=1e-3) for found, line in zip(other, lines, strict=True))


def test_a_category_that_no_task_is_called_is_refused_where_it_is_needed(folders, capsys):
    main(["evaluate", str(folders / "given"), f"--pairs={folders / 'odd.jsonl'}"])
    printed = capsys.readouterr().out
    assert "12 rows read, 9 used" in printed
    assert "refused 3: unseen category (1, 2, 3)" in printed
    with pytest.raises(SystemExit, match="none of its 3 rows can be used .refused: 3 unseen category"):
        main(["evaluate", str(folders / "given"), f"--pairs={folders / 'poems.jsonl'}"])


def test_a_category_that_the_router_never_saw_is_counted(folders, tmp_path, capsys):
    main(["evaluate", str(folders / "classifier"), f"--pairs={folders / 'odd.jsonl'}"])
    printed = capsys.readouterr().out
    assert "12 rows read, 12 used" in printed
    assert "noted 3: unseen category (1, 2, 3)" in printed
    main(["score", str(folders / "classifier"), str(folders / "odd.jsonl"), f"--out={tmp_path / 'scores.jsonl'}"])
    assert "noted 3: unseen category (rows 1, 2, 3)" in capsys.readouterr().out
    for command in (["evaluate"], ["score", f"--out={tmp_path / 'scores.jsonl'}"]):
        file = str(folders / "known.jsonl")
        main([command[0], str(folders / "classifier"), *(["--pairs", file] if not command[1:] else [file, command[1]])])
        assert "unseen" not in capsys.readouterr().out


def fit(folders, tokenizer, file, **options):
    benchmarks = Benchmarks(pairs={"held_out": str(folders / file)}, every_n_epochs=None)
    data = PairDataModule(
        str(folders / "train.jsonl"), str(folders / "known.jsonl"), tokenizer=str(tokenizer), pairs_per_step=12
    )
    trainer(benchmarks, log_every_n_steps=1).fit(experts_module(phases=SHORT, **options), data)
    return benchmarks.results[0]


def test_experts_in_training_get_the_categories_too(folders, byte_tokenizer):
    found = fit(folders, byte_tokenizer, "odd.jsonl", routing="given")
    assert found.reading.refused == {"unseen_category": ["1", "2", "3"]}
    assert found.rows[-1].n == 9
    found = fit(folders, byte_tokenizer, "odd.jsonl")
    assert found.reading.noted == {"unseen_category": ["1", "2", "3"]}
    assert found.rows[-1].n == 12


def test_a_benchmark_without_their_categories_is_refused_before_the_first_step(folders, byte_tokenizer):
    with pytest.raises(
        ValueError, match=r"held_out: \S+: its categories \(poem\) are none of the tasks chat, code"
    ) as e:
        fit(folders, byte_tokenizer, "poems.jsonl", routing="given")
    assert "\n" not in str(e.value)
    assert fit(folders, byte_tokenizer, "poems.jsonl").rows[-1].n == 3
