"""The generative judge against transformers asked one question at a time in float64; swaps, packs, folders, tokens."""

import itertools
import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from grmlight.data.texts import TextGroup
from grmlight.data.tokenizer import load_tokenizer
from grmlight.models import load_reward_model
from grmlight.models.judge import Judge
from grmlight.models.judge_prompt import TEMPLATE, JudgePrompt, conversation_text
from tests.tiny_models import tiny_reward_model

USER, ASSISTANT = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so {a}"}
GROUPS = [
    TextGroup("why is the house red?", ("it is green {b}", "so it was said")),
    TextGroup((USER, ASSISTANT, {"role": "user", "content": "and the dog?"}), ("no", "the dog is not so", "{prompt}")),
    TextGroup((USER,), ("the cat", "the cat")),
    TextGroup("alone", ("one",)),
    TextGroup("four", ("a", "b b", "c c c", "d d d d")),
    TextGroup((USER,), ((ASSISTANT, USER, ASSISTANT), (ASSISTANT | {"content": "no"}, USER, ASSISTANT))),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, byte_tokenizer):
    """Folders with a tiny LM and a tokenizer, with a chat template or without one, by architecture."""
    made = {}

    def folder(architecture, chat=True):
        if (architecture, chat) not in made:
            path = made[architecture, chat] = tmp_path_factory.mktemp(architecture)
            entries = {"vocab_size": 320} | ({} if architecture == "bloom" else {"max_position_embeddings": 2048})
            tiny_reward_model(architecture, config=entries, seed=3).lm.save_pretrained(path)
            tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
            tokenizer.add_tokens([" A", " B"])
            tokenizer.chat_template = tokenizer.chat_template if chat else None
            tokenizer.save_pretrained(path)
        return str(made[architecture, chat])

    return folder


def slow_log_odds(folder, dtype):
    """For a prompt and two answers: asked one question at a time, the whole forward, the whole vocabulary."""
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def ask(prompt, first, second):
        head, middle, last, end = TEMPLATE.replace("{prompt}", "|").replace("{a}", "|").replace("{b}", "|").split("|")
        text = (
            head
            + conversation_text(prompt)
            + middle
            + conversation_text(first)
            + last
            + conversation_text(second)
            + end
        )
        letters = ["A", " A"], ["B", " B"]
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        logps = lm(input_ids=tokenizer(text, return_tensors="pt").input_ids).logits[0, -1].log_softmax(-1)
        shares = []
        for words in letters:
            ids = [id_ for word in words for id_ in tokenizer(word).input_ids]
            assert len(ids) == len(words)
            shares.append(math.log(sum(math.exp(float(logps[id_])) for id_ in ids)))
        return shares[0] - shares[1]

    return ask


def expected(group, ask):
    """Least squares: rewards whose differences fit the mean log-odds of both orders."""
    count = len(group.responses)
    rewards = [0.0] * count
    for i, j in itertools.permutations(range(count), 2):
        forth = ask(group.prompt, group.responses[i], group.responses[j])
        back = ask(group.prompt, group.responses[j], group.responses[i])
        rewards[i] += (forth - back) / 2 / count
    return rewards


@pytest.mark.parametrize(
    ("architecture", "chat"),
    [("llama", True), ("llama", False), ("gemma2", True), ("cohere2", False), ("gpt2", True), ("bloom", True)],
)
def test_scores_are_transformers_asked_one_by_one(folders, architecture, chat):
    folder = folders(architecture, chat)
    judge = Judge(folder, tokens_per_batch=1500)
    assert judge.packed == (architecture != "bloom")
    found = judge.score(GROUPS)
    for dtype, tolerance in ((torch.float64, 2e-5), (torch.float32, 2e-5)):
        ask = slow_log_odds(folder, dtype)
        for group, rewards in zip(GROUPS, found, strict=True):
            assert rewards == pytest.approx(expected(group, ask), abs=tolerance)
    assert max(abs(reward) for rewards in found for reward in rewards) > 1e-3


def test_the_place_of_an_answer_cancels_bit_for_bit(folders):
    judge = Judge(folders("llama"))
    for first, second in (("it is green", "so it was"), ("", "x"), ("same", "same")):
        forth, back = judge.score([TextGroup("why", (first, second)), TextGroup("why", (second, first))])
        (apart,) = judge.score([TextGroup("why", (second, first))])
        assert forth == back[::-1]
        assert forth == [-reward for reward in back]
        assert forth[0] == -forth[1]
        assert apart == pytest.approx(back, abs=1e-6)
        alone = [judge.score([TextGroup("why", pair)])[0] for pair in ((first, second), (second, first))]
        assert alone[0] == alone[1][::-1] == [-reward for reward in alone[1]]


def test_scores_do_not_depend_on_company_or_order(folders):
    judge, single = Judge(folders("llama")), Judge(folders("llama"), tokens_per_batch=1)
    together = judge.score(GROUPS)
    assert judge.score([]) == []
    assert together[3] == [0.0]
    assert together[2] == [0.0, 0.0]
    for found in (judge.score(GROUPS[::-1])[::-1], single.score(GROUPS), [judge.score([g])[0] for g in GROUPS]):
        for left, right in zip(found, together, strict=True):
            assert left == pytest.approx(right, abs=1e-5)


def test_the_difference_of_two_rewards_is_the_mean_log_odds(folders):
    ask, group = slow_log_odds(folders("llama"), torch.float64), GROUPS[0]
    first, second = Judge(folders("llama")).score([group])[0]
    odds = (ask(group.prompt, *group.responses) - ask(group.prompt, *group.responses[::-1])) / 2
    assert first - second == pytest.approx(odds, abs=2e-5)


def test_a_saved_judge_scores_alike_and_is_no_model_of_tokens(folders, tmp_path):
    template = "{prompt}\n1: {b}\n2: {a}\nWhich, A or B? Choice:"
    judge = Judge(folders("gpt2", chat=False), template)
    judge.save_pretrained(tmp_path / "judge")
    again = Judge.from_pretrained(tmp_path / "judge")
    assert (again.name, again.prompt.template) == (judge.name, template)
    assert again.score(GROUPS) == judge.score(GROUPS) != Judge(judge.name).score(GROUPS)
    with pytest.raises(ValueError, match="is a judge, which reads texts"):
        load_reward_model(tmp_path / "judge")
    (tmp_path / "judge/template.txt").unlink()
    assert Judge.from_pretrained(tmp_path / "judge").prompt.template == TEMPLATE


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "reward", "lm": "x"}', '{"kind": "judge"}', None])
def test_a_folder_that_is_no_judge_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "grmlight.json").write_text(text)
    with pytest.raises(ValueError, match=r"grmlight\.json: cannot be read as a judge") as caught:
        Judge.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_question_of_too_many_tokens_is_named(folders):
    judge = Judge(folders("llama"))
    long = TextGroup("why " * 1000, ("a", "b"))
    with pytest.raises(ValueError, match=r"group 2 makes a question of \d+ tokens and .* takes 2048"):
        judge.score([GROUPS[0], long])


def test_braces_in_texts_stay_as_they_are(byte_tokenizer):
    prompt = JudgePrompt(load_tokenizer(str(byte_tokenizer)), "P {prompt} A {a} B {b} ?")
    assert "P {b} A {prompt} B {a} ?" in prompt.render("{b}", "{prompt}", "{a}")
    assert conversation_text((USER, ASSISTANT)) == "User: why?\n\nAssistant: so {a}"


def test_letters_are_single_tokens_with_and_without_a_space(byte_tokenizer, tmp_path):
    tokenizer = load_tokenizer(str(byte_tokenizer))
    tokenizer.add_tokens([" A", " B"])
    tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    one = tuple((tokenizer.convert_tokens_to_ids(letter),) for letter in "AB")
    both = tuple((*bare, tokenizer.convert_tokens_to_ids(f" {letter}")) for bare, letter in zip(one, "AB", strict=True))
    assert JudgePrompt(tokenizer).tokens_2F == both
    tokenizer.chat_template = None
    assert JudgePrompt(tokenizer).tokens_2F == both
    assert JudgePrompt(tokenizer, TEMPLATE + "\n").tokens_2F == one


def words(vocabulary, unknown="?"):
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(vocabulary)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown)


def test_letters_may_be_the_same_words_with_a_space_or_without():
    assert JudgePrompt(words(["?", "A", "B"]), "{prompt} {a} {b} ? ").tokens_2F == ((1,), (2,))


@pytest.mark.parametrize("vocabulary", [["?", "A"], ["?"], ["?", "B"]], ids=str)
def test_letters_that_are_no_tokens_are_refused_in_one_line(vocabulary):
    with pytest.raises(ValueError, match="A and B are not one token each, or not told apart") as caught:
        JudgePrompt(words(vocabulary))
    assert "\n" not in str(caught.value)


def test_a_template_whose_end_swallows_the_letter_is_refused(byte_tokenizer):
    tokenizer = load_tokenizer(str(byte_tokenizer))
    tokenizer.add_tokens([" A", " B"])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="end the template in another way"):
        JudgePrompt(tokenizer, TEMPLATE + " ")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{prompt} {a}", "each once"),
        ("{prompt} {a} {a} {b} ?", "each once"),
        ("{prompt} {a} {b}\n", "end with a question"),
    ],
)
def test_a_template_that_cannot_be_asked_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        JudgePrompt(words(["?", "A", "B"]), template)
