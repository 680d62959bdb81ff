"""Errors about a row name the row that its user knows, wherever scoring puts it."""

import json

import pytest

from grmlight.data.options import PrepareOptions
from grmlight.data.tokenizer import load_tokenizer
from grmlight.evaluation import ModelScorer
from grmlight.evaluation.benchmarks import PairFile
from grmlight.evaluation.evaluate import evaluate
from grmlight.models.judge import Judge
from grmlight.scoring import score
from tests.tiny_models import tiny_reward_model

ROWS = [{"prompt": f"why {'so ' * count}", "chosen": "a", "rejected": "b"} for count in (1, 30, 2, 2500)]
# Those with long answers are scored first.
ROWS[3]["chosen"] = "aaaa"


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def judge(tmp_path, byte_tokenizer):
    model = tiny_reward_model(config={"vocab_size": 320, "max_position_embeddings": 2048})
    model.lm.save_pretrained(tmp_path / "lm")
    load_tokenizer(str(byte_tokenizer)).save_pretrained(tmp_path / "lm")
    return Judge(str(tmp_path / "lm"))


def test_a_long_row_is_named_by_its_number_in_the_file(pairs, byte_tokenizer):
    options = PrepareOptions(max_length=1000, on_overlong="raise")
    model = tiny_reward_model(config={"vocab_size": 320, "max_position_embeddings": 4096})
    scorer, benchmark = ModelScorer(model, load_tokenizer(str(byte_tokenizer)), options), PairFile()
    with pytest.raises(ValueError, match=rf"^pairs: {pairs}: row 5 has \d+ tokens and max_length is 1000"):
        evaluate(scorer, benchmark, benchmark.read(str(pairs)))


def test_so_is_one_that_is_too_long_for_a_judge(pairs, judge, tmp_path):
    benchmark = PairFile()
    with pytest.raises(ValueError, match=rf"^pairs: {pairs}: row 5 makes a question of \d+ tokens"):
        evaluate(judge, benchmark, benchmark.read(str(pairs)))
    judge.save_pretrained(tmp_path / "judge")
    with pytest.raises(ValueError, match=rf"^{pairs}: row 5 makes a question of \d+ tokens"):
        score(tmp_path / "judge", str(pairs), tmp_path / "scores.jsonl", pairs_per_batch=1)
    assert not (tmp_path / "scores.jsonl").exists()


def test_so_is_one_that_the_chat_template_refuses(pairs, tmp_path, judge):
    folder = tmp_path / "lm"
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = (
        "{% if 'so so so' in messages[0]['content'] %}{{ raise_exception('too so') }}{% endif %}"
        "{{ messages[0]['content'] }}{% if add_generation_prompt %}: {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    benchmark = PairFile()
    with pytest.raises(ValueError, match="row 5 cannot be asked about: the chat template refuses .*too so"):
        evaluate(Judge(str(folder)), benchmark, benchmark.read(str(pairs)))
