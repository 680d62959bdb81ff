"""`grmlight winrate` on tiny policies of the embedded world: from folders and prompts to the table."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from grmlight.cli import main
from grmlight.data.files import sole_writer
from grmlight.data.texts import TextGroup
from grmlight.lab import GoldReward, world_files
from grmlight.lab.files import ASSETS
from grmlight.models import PolicyModel
from tests.labeling.server import serving
from tests.tiny_models import tiny_backbone

LM = "package:grmlight.lab/assets/lm"


def worlds_prompts(count):
    """Prompts of the shipped pairs, as text."""
    with gzip.open(ASSETS / "pairs" / "id.jsonl.gz", "rt", encoding="utf-8") as file:
        return list(dict.fromkeys(json.loads(line)["prompt"] for line in file))[:count]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in worlds_prompts(24)))
    return path


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
    """The world's policy with noise on its weights."""
    folder = tmp_path_factory.mktemp("worse")
    shutil.copytree(world_files().lm, folder, dirs_exist_ok=True)
    lm = LlamaForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.6 * float(parameter.std()))
    lm.save_pretrained(folder)
    return folder


def winrate(*arguments):
    main(["winrate", *map(str, arguments)])


def result(out):
    return json.loads((out / "winrate.json").read_text())


@pytest.fixture(scope="module")
def compared(prompts, worse, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    arguments = ("good=" + LM, "again=" + LM, f"worse={worse}", "--prompts", prompts, "--judge", "gold", "--out", out)
    winrate(*arguments, "--samples", 2, "--max_new_tokens", 24)
    return out, arguments


def rows_of(file):
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def test_the_shares_are_what_counting_gives(compared):
    """Every pair scored alone by the gold, and counted."""
    found, gold = result(compared[0]), GoldReward()
    files = [each["file"] for each in found["policies"]]
    counts = {"win": 0, "tie": 0, "loss": 0}
    for mine, theirs in zip(rows_of(files[0]), rows_of(files[2]), strict=True):
        assert mine["prompt"] == theirs["prompt"]
        first, second = (
            gold.score([TextGroup(each["prompt"], (each["response"],), ended=(each["ended"],))])[0][0]
            for each in (mine, theirs)
        )
        counts["win" if first > second else "loss" if first < second else "tie"] += 1
    row = found["rows"][0]
    assert row["raw"]["pairs"] == 48
    assert row["raw"]["prompts"] == 24
    assert {name: round(48 * row["raw"][name]["value"]) for name in counts} == counts
    assert counts["win"] > counts["loss"] > 0
    assert row["position"]["agreed"]["value"] == 1.0
    assert row["raw"]["win"]["low"] < row["raw"]["win"]["value"] < row["raw"]["win"]["high"]


def test_one_policy_under_two_names_has_one_result(compared):
    first, again = result(compared[0])["rows"]
    assert {**first, "method": ""} == {**again, "method": ""}


def test_a_policy_against_itself_is_all_ties(prompts, tmp_path):
    winrate(f"a={LM}", f"b={LM}", "--prompts", prompts, "--judge", "gold", "--out", tmp_path, "--max_new_tokens", 8)
    row = result(tmp_path)["rows"][0]
    assert (row["raw"]["tie"]["value"], row["identical"]) == (1.0, 24)


def test_the_tables_have_the_papers_shape(compared, capsys):
    out, arguments = compared
    winrate(*arguments, "--samples", 2, "--max_new_tokens", 24)
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "win, tie and loss against worse, in %, judged by gold"
    assert shown.splitlines()[1].split() == ["method", "win", "tie", "loss", "win", "+", "tie/2", "pairs", "prompts"]
    assert "paper: GRM against vanilla, gemma-2b-it reward model  " in shown
    assert (
        "| paper: GRM against vanilla, Mistral-7B reward model | 73 | 6 | 21 | 76 |" in (out / "winrate.md").read_text()
    )


def test_what_is_there_is_neither_sampled_nor_asked_again(compared, monkeypatch):
    out, arguments = compared
    before = result(out)
    files = {path: path.read_bytes() for path in out.glob("*.jsonl")}

    def nothing(*_):
        raise AssertionError("sampled or scored again")

    monkeypatch.setattr("grmlight.policy.winrate.answers.open_sampler", nothing)
    monkeypatch.setattr(GoldReward, "score", nothing)
    winrate(*arguments, "--samples", 2, "--max_new_tokens", 24)
    assert {path: path.read_bytes() for path in out.glob("*.jsonl")} == files
    assert result(out)["rows"] == before["rows"]


def test_sampled_answers_can_be_named_in_a_policys_place(compared, prompts, tmp_path):
    found = result(compared[0])
    good, _, worse = (each["file"] for each in found["policies"])
    winrate(f"good={good}", f"worse={worse}", "--prompts", prompts, "--judge", "gold", "--out", tmp_path)
    assert result(tmp_path)["rows"][0] == found["rows"][0]


def write_answers(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers_to(prompts, text):
    asked = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    return [{"prompt": prompt, "response": text} for prompt in asked]


def test_a_judge_that_goes_by_the_place_is_told_and_gives_ties(prompts, tmp_path):
    one, other = (write_answers(tmp_path / f"{text}.jsonl", answers_to(prompts, text)) for text in ("one", "other"))
    winrate(
        one, other, "--prompts", prompts, "--judge", "tests.policy.winrate.test_judges.FirstPlace", "--out", tmp_path
    )
    row = result(tmp_path)["rows"][0]
    assert row["raw"]["tie"]["value"] == 1.0
    assert (row["position"]["first"]["value"], row["position"]["both_first"]) == (1.0, 24)
    assert row["position"]["agreed"]["value"] == 0.0
    assert "names the answer shown first in 100.0% [100.0, 100.0]" in (tmp_path / "winrate.md").read_text()


def test_an_endpoint_judges(prompts, tmp_path):
    one, other = (write_answers(tmp_path / f"{text}.jsonl", answers_to(prompts, text)) for text in ("one", "other"))
    with serving(lambda body: "A" if "[Answer A]\nother" in body["messages"][0]["content"] else "B") as (url, requests):
        winrate(one, other, "--prompts", prompts, "--judge", url, "--model", "m", "--out", tmp_path)
        assert {each["body"]["model"] for each in requests} == {"m"}
        assert len(requests) == 48
        # Paid once.
        winrate(one, other, "--prompts", prompts, "--judge", url, "--model", "m", "--out", tmp_path)
        assert len(requests) == 48
    assert result(tmp_path)["rows"][0]["raw"]["loss"]["value"] == 1.0


def test_missing_rows_and_rows_of_other_prompts_are_counted(prompts, tmp_path, capsys):
    rows = answers_to(prompts, "one")
    few = write_answers(tmp_path / "few.jsonl", [*rows[3:], {"prompt": "another one", "response": "x"}])
    all_ = write_answers(tmp_path / "all.jsonl", answers_to(prompts, "more"))
    winrate(few, all_, "--prompts", prompts, "--judge", "tests.policy.winrate.test_judges.length", "--out", tmp_path)
    shown = capsys.readouterr().out
    assert f"{few}: no answer to 3 prompts, the first is 1 (no row in the file)" in shown
    assert f"{few}: 1 rows answer no prompt that was asked for" in shown
    assert result(tmp_path)["rows"][0]["raw"]["pairs"] == 21


def test_a_policy_with_another_tokenizer_is_judged_by_its_text(prompts, byte_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    PolicyModel(tiny_backbone(config={"vocab_size": 320})).save_pretrained(tmp_path / "other", tokenizer)
    out = tmp_path / "out"
    winrate(
        f"a={LM}",
        f"b={tmp_path / 'other'}",
        "--prompts",
        prompts,
        "--judge",
        "gold",
        "--out",
        out,
        "--max_new_tokens",
        12,
    )
    assert result(out)["rows"][0]["raw"]["win"]["value"] > 0.9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ONE",), "name at least two policies"),
        (("ONE", "ONE"), "two policies are called"),
        (("ONE", "ALIEN"), "none of its 2 rows answers any of the 24 prompts"),
        (("ONE", "BROKEN"), "line 2 is no answer"),
        (("ONE", "NOTEXT"), "line 1 is no answer"),
        (("ONE", "OTHER", "--judge", "nothing"), "reward 'nothing': no such folder"),
        (("ONE", "OTHER", "--judge", "http://127.0.0.1:9/v1", "--retries", "0"), "does not answer"),
        (("ONE", "./nowhere"), "nowhere"),
        (("ONE", "OTHER", "--length_ratio", "0.5"), "length_ratio must be at least 1"),
        (("PART", "REST"), "have no prompt that both answered"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments, said, prompts, tmp_path, capsys):
    rows = answers_to(prompts, "one")
    files = {
        "ONE": write_answers(tmp_path / "one.jsonl", rows),
        "OTHER": write_answers(tmp_path / "other.jsonl", answers_to(prompts, "other")),
        "ALIEN": write_answers(tmp_path / "alien.jsonl", [{"prompt": f"x {n}", "response": "y"} for n in range(2)]),
        "NOTEXT": write_answers(tmp_path / "notext.jsonl", [{"prompt": "x", "response": 3}]),
        "BROKEN": tmp_path / "broken.jsonl",
        "PART": write_answers(tmp_path / "part.jsonl", rows[:5]),
        "REST": write_answers(tmp_path / "rest.jsonl", rows[5:]),
    }
    files["BROKEN"].write_text(json.dumps(rows[0]) + "\nnothing\n")
    given = [str(files.get(each, each)) for each in arguments]
    judge = [] if "--judge" in given else ["--judge", "gold"]
    with pytest.raises(SystemExit) as told:
        winrate(*given, *judge, "--prompts", prompts, "--out", tmp_path / "out")
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_prompts_that_the_gold_does_not_know_are_left_out_and_counted(tmp_path, capsys):
    asked = write_answers(tmp_path / "prompts.jsonl", [{"prompt": "why is the sky blue?"}])
    one, other = (
        write_answers(tmp_path / f"{text}.jsonl", [{"prompt": "why is the sky blue?", "response": text}])
        for text in ("dust", "light")
    )
    winrate(one, other, "--prompts", asked, "--judge", "gold", "--out", tmp_path / "out")
    assert "dust.jsonl: 1 pairs without a verdict, left out" in capsys.readouterr().out


def test_answers_that_met_none_are_counted(prompts, tmp_path, capsys):
    many = write_answers(tmp_path / "many.jsonl", answers_to(prompts, "one") + answers_to(prompts, "two"))
    once = write_answers(tmp_path / "once.jsonl", answers_to(prompts, "other"))
    winrate(many, once, "--prompts", prompts, "--judge", "tests.policy.winrate.test_judges.length", "--out", tmp_path)
    assert f"{many}: 24 answers were not compared, as a side gave fewer to their prompts" in capsys.readouterr().out
    assert result(tmp_path)["rows"][0]["unpaired_answers"] == 24


def test_two_writers_do_not_share_a_folder(prompts, tmp_path):
    one, other = (write_answers(tmp_path / f"{text}.jsonl", answers_to(prompts, text)) for text in ("one", "other"))
    with sole_writer(tmp_path / "out"), pytest.raises(SystemExit, match="is writing to it"):
        winrate(one, other, "--prompts", prompts, "--judge", "gold", "--out", tmp_path / "out")
