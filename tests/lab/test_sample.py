import pytest
import torch

from grmlight.lab.sample import sample_responses

PROMPTS = ["tell two animals color", "polite list place of three hats but no cap", "tell one boats color excited"]


def test_the_same_seed_draws_the_same(lm, words):
    drawn = sample_responses(lm, words, PROMPTS, 3, seed=1)
    assert [len(row) for row in drawn] == [3, 3, 3]
    assert drawn == sample_responses(lm, words, PROMPTS, 3, seed=1)
    assert drawn != sample_responses(lm, words, PROMPTS, 3, seed=2)


def test_sampling_leaves_the_global_generator_alone(lm, words):
    before = torch.get_rng_state()
    sample_responses(lm, words, PROMPTS, 1, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_answers_answer_their_own_prompt(lm, words):
    drawn = sample_responses(lm, words, PROMPTS, 40, seed=0)
    shares = [sum(answer.text.startswith("dear") for answer in row) / 40 for row in drawn]
    assert shares[1] > 0.5 > max(shares[0], shares[2])


def test_no_answers_to_no_prompts(lm, words):
    assert sample_responses(lm, words, [], 4, seed=0) == []
    assert sample_responses(lm, words, PROMPTS, 0, seed=0) == [[], [], []]


def test_answers_are_cut_at_the_limit(lm, words):
    drawn = [answer for row in sample_responses(lm, words, PROMPTS, 20, seed=0, max_new_tokens=3) for answer in row]
    assert all(len(answer.text.split()) == 3 for answer in drawn if not answer.ended)
    assert all(len(answer.text.split()) < 3 for answer in drawn if answer.ended)
    assert not all(answer.ended for answer in drawn)


@pytest.mark.parametrize("batch_size", [1, 2, 1024])
def test_the_cache_changes_nothing(lm, words, monkeypatch, batch_size):
    monkeypatch.setattr(torch, "multinomial", lambda p, n, generator: p.argmax(-1, keepdim=True))
    drawn = sample_responses(lm, words, PROMPTS, 2, seed=0, batch_size=batch_size)
    for prompt, row in zip(PROMPTS, drawn, strict=True):
        ids = words(f"<bos> {prompt} <sep>", return_tensors="pt")["input_ids"]
        while ids[0, -1] != words.eos_token_id:
            with torch.no_grad():
                ids = torch.cat([ids, lm(ids).logits[:, -1:].argmax(-1)], 1)
        expected = words.decode(ids[0]).split("<sep> ")[1].removesuffix(" <eos>")
        assert [answer.text for answer in row] == [expected, expected]


def test_the_first_word_has_the_models_distribution(lm, words):
    drawn = sample_responses(lm, words, PROMPTS[1:2], 4000, seed=0, max_new_tokens=1)[0]
    with torch.no_grad():
        expected = lm(words(f"<bos> {PROMPTS[1]} <sep>", return_tensors="pt")["input_ids"]).logits[0, -1].softmax(-1)
    for word in ("dear", "well", "beret"):
        share = sum(answer.text == word for answer in drawn) / 4000
        assert share == pytest.approx(float(expected[words.convert_tokens_to_ids(word)]), abs=0.032)
