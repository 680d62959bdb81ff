"""`grmlight score` with a judge: the lines that a reward model gives, with a judge's rewards."""

import json

import pytest

from grmlight.cli import main
from grmlight.data.options import PrepareOptions
from grmlight.data.texts import TextGroup
from grmlight.data.tokenizer import load_tokenizer
from grmlight.export import save_model
from grmlight.models.judge import Judge
from tests.tiny_models import tiny_reward_model

ROWS = [
    {"prompt": "why", "chosen": "so", "rejected": "no", "id": 7},
    {"prompt": "who", "responses": ["me", "you", "she", "he"], "ratings": [1, 3, 2, 3], "id": "four"},
    {"prompt": "what", "responses": ["red", "green"], "ranks": [2, 1]},
    {"prompt": "why", "chosen": "so", "rejected": "so"},
    {"prompt": "why", "chosen": "yes", "rejected": "no", "soft_label": 0.2},
    {"prompt": [{"role": "user", "content": "hm"}], "chosen": "so", "rejected": "no"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, byte_tokenizer):
    folder = tmp_path_factory.mktemp("judge")
    model = tiny_reward_model(config={"vocab_size": 320, "max_position_embeddings": 4096})
    model.lm.save_pretrained(folder / "lm")
    load_tokenizer(str(byte_tokenizer)).save_pretrained(folder / "lm")
    Judge(str(folder / "lm")).save_pretrained(folder / "judge")
    save_model(model, folder / "model", str(byte_tokenizer), PrepareOptions(max_length=None))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def scored(folders, out, model, capsys, *arguments):
    main(["score", str(folders / model), str(folders / "rows.jsonl"), f"--out={out / model}.jsonl", *arguments])
    return [json.loads(line) for line in (out / f"{model}.jsonl").read_text().splitlines()], capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--pairs_per_batch=2"]])
def test_a_judges_lines_are_those_of_a_reward_model_with_its_rewards(arguments, folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    expected, model_said = scored(folders, tmp_path, "model", capsys)
    found, judge_said = scored(folders, tmp_path, "judge", capsys, *arguments)
    named = ("row", "id", "responses")
    assert [[each.get(name) for name in named] for each in found] == [[each.get(n) for n in named] for each in expected]
    assert len(found) == 1 + 5 + 1 + 1 + 1
    for said in (model_said, judge_said):
        assert "6 pairs read, 5 used, 1 refused, 9 comparisons" in said
        assert "refused 1: identical (rows 4)" in said
    judge = Judge(str(folders / "lm"))
    pair, ranking = judge.score([TextGroup("why", ("so", "no")), TextGroup("who", ("me", "you", "she", "he"))])
    assert [found[0]["chosen"], found[0]["rejected"]] == pytest.approx(pair, abs=1e-5)
    assert found[0]["margin"] == pytest.approx(2 * pair[0], abs=1e-5)
    for each in found[1:6]:
        better, worse = each["responses"]
        assert [each["chosen"], each["rejected"]] == pytest.approx([ranking[better], ranking[worse]], abs=1e-5)
    (two,) = judge.score([TextGroup("what", ("green", "red"))])
    assert [found[6]["chosen"], found[6]["rejected"]] == pytest.approx(two, abs=1e-5)


def test_rewards_of_several_answers_are_the_mean_of_their_duels(folders):
    """What docs/judge.md says of more than two: reward i is the mean over all j of d[i, j]."""
    judge, answers = Judge(str(folders / "lm")), ("me", "you", "she")
    (found,) = judge.score([TextGroup("who", answers)])
    duel = {
        (i, j): judge.score([TextGroup("who", (answers[i], answers[j]))])[0]
        for i in range(3)
        for j in range(3)
        if i != j
    }
    for i, reward in enumerate(found):
        others = [duel[i, j][0] - duel[i, j][1] for j in range(3) if j != i]
        assert reward == pytest.approx(sum(others) / 3, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--aggregation=mean"], "is no ensemble"), (["--pairs_per_batch=0"], "pairs_per_batch must be at least 1")],
)
def test_a_mistake_is_one_line(arguments, message, folders, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        scored(folders, tmp_path, "judge", capsys, *arguments)
    assert message in str(end.value)


def test_a_file_without_a_usable_row_is_one_line(folders, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[3]) + "\n")
    with pytest.raises(SystemExit, match="none of its 1 rows can be used .refused: 1 identical"):
        main(["score", str(folders / "judge"), str(tmp_path / "rows.jsonl"), f"--out={tmp_path / 'out'}"])
