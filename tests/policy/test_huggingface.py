"""The Hugging Face sampler: what a row says depends on nothing but its prompt and its random stream."""

import copy
import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from grmlight.data.encode import TextEncoder, TokenGroup
from grmlight.data.options import PrepareOptions
from grmlight.data.texts import TextGroup
from grmlight.data.tokenizer import load_tokenizer
from grmlight.lab import world_files
from grmlight.models import PolicyModel, Signal
from grmlight.models.attention import PACKED
from grmlight.models.backbone import LoraOptions
from grmlight.policy.huggingface import HuggingFaceSampler
from grmlight.policy.rollouts import Rollouts
from grmlight.policy.sampler import SamplingOptions, open_sampler
from tests.models.plain import wake_adapters
from tests.tiny_models import tiny_backbone

WORLD = "package:grmlight.lab/assets/lm"
PROMPTS = (
    "tell two animals color avoid cat excited",
    "list place of one hats",
    "i want three boats with color",
    "color of tools five please polite",
    "tell one drums place",
    "tell one drums place",
)
WAYS = (
    SamplingOptions(samples=3),
    SamplingOptions(temperature=0.0),
    SamplingOptions(samples=2, temperature=1.4, top_p=0.9, top_k=30),
)
TEXTS = ("the cat", "why is the red house green and the dog not so", "who", "it was")


def same(found: Rollouts, expected: Rollouts, tolerance: float = 2e-5) -> None:
    """Equal tokens and texts, and log-probs that agree."""
    assert len(found.groups) == len(expected.groups)
    for one, other in zip(found.answers, expected.answers, strict=True):
        assert (one.tokens.tolist(), one.text, one.ended) == (other.tokens.tolist(), other.text, other.ended)
        np.testing.assert_allclose(one.logps, other.logps, atol=tolerance)


@pytest.fixture(scope="module")
def world():
    return open_sampler(WORLD)


@pytest.fixture(scope="module")
def tokenizer(byte_tokenizer):
    return load_tokenizer(str(byte_tokenizer))


def tiny(architecture="llama", lora=False, **options):
    policy = PolicyModel(tiny_backbone(architecture, lora, {"vocab_size": 300, "eos_token_id": 7}, **options))
    wake_adapters(policy)
    return policy


@pytest.mark.parametrize("options", WAYS)
def test_batches_and_their_order_do_not_matter(world, options):
    whole = world.generate(PROMPTS, options, 5)
    assert len({answer.text for answer in whole.answers}) > 3
    for rows in (1, 4):
        same(world.generate(PROMPTS, dataclasses.replace(options, rows_per_batch=rows), 5), whole)
    # In parts, in another order, each prompt under its number.
    for numbers in ((5, 2), (4, 0, 1), (3,)):
        part = world.generate([PROMPTS[number] for number in numbers], options, 5, numbers)
        same(part, dataclasses.replace(whole, groups=tuple(whole.groups[number] for number in numbers)))
    more = world.generate(PROMPTS, dataclasses.replace(options, samples=options.samples + 1), 5)
    first = [dataclasses.replace(group, answers=group.answers[: options.samples]) for group in more.groups]
    same(dataclasses.replace(more, groups=tuple(first)), whole)


def test_prompts_seeds_and_samples_have_streams_of_their_own(world):
    texts = [[a.text for a in world.generate(PROMPTS, SamplingOptions(samples=8), seed).answers] for seed in (0, 1)]
    assert texts[0] != texts[1]
    assert texts[0][32:40] != texts[0][40:48], "one prompt twice is answered twice"
    assert len(set(texts[0][:8])) > 1


def test_greedy_is_that_of_generate(world):
    found = world.generate(PROMPTS, SamplingOptions(temperature=0.0, max_new_tokens=30), 0)
    lm = AutoModelForCausalLM.from_pretrained(world_files().lm).eval()
    for group in found.groups:
        ids = torch.from_numpy(group.prompt_tokens)[None]
        whole = lm.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30)
        assert group.answers[0].tokens.tolist() == whole[0, ids.shape[1] :].tolist()


def test_samples_follow_the_models_distribution(world):
    found = world.generate(PROMPTS[:1], SamplingOptions(samples=6000, max_new_tokens=1, rows_per_batch=2000), 9)
    firsts = torch.tensor([answer.tokens[0] for answer in found.answers])
    ids = torch.from_numpy(found.groups[0].prompt_tokens)[None]
    lm = AutoModelForCausalLM.from_pretrained(world_files().lm).eval()
    with torch.no_grad():
        expected = lm(ids).logits[0, -1].softmax(-1)
    shares = torch.bincount(firsts, minlength=len(expected)) / 6000
    assert (shares - expected).abs().max() < 4 * (0.25 / 6000) ** 0.5


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "bloom", "cohere2"])
def test_logps_are_those_of_a_packed_forward(architecture, lora, tokenizer):
    policy = tiny(architecture, lora)
    for options in (SamplingOptions(3, 12), SamplingOptions(2, 12, temperature=0.5, top_k=4)):
        found = HuggingFaceSampler(policy, tokenizer).generate(TEXTS, options, 2)
        with torch.no_grad():
            outputs = policy(found.batch(), frozenset({Signal.LOGPS}))
        flat = np.concatenate([answer.logps for answer in found.answers])
        np.testing.assert_allclose(outputs.logps_L.numpy(), flat, atol=1e-4)


def test_adapters_speak(tokenizer):
    policy = tiny(lora=True)
    adapted = HuggingFaceSampler(policy, tokenizer).generate(TEXTS, SamplingOptions(2, 12), 2)
    asleep = PolicyModel(tiny_backbone(lora=True, config={"vocab_size": 300, "eos_token_id": 7}))
    plain = HuggingFaceSampler(asleep, tokenizer).generate(TEXTS, SamplingOptions(2, 12), 2)
    assert [answer.text for answer in adapted.answers] != [answer.text for answer in plain.answers]


def test_a_model_in_training_stays_so(tokenizer):
    backbone = tiny_backbone(config={"vocab_size": 300, "eos_token_id": 7, "attention_dropout": 0.5})
    lora = LoraOptions(r=4, alpha=8, dropout=0.5)
    policy = PolicyModel(dataclasses.replace(backbone, lora=lora, gradient_checkpointing=True))
    wake_adapters(policy)
    policy.train()
    policy.lm.get_input_embeddings().eval()
    modes = [module.training for module in policy.modules()]
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    weights = copy.deepcopy(policy.state_dict())
    sampler = HuggingFaceSampler(policy, tokenizer)
    found = sampler.generate(TEXTS, SamplingOptions(2, 12), 2)
    assert [module.training for module in policy.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    assert all(torch.equal(weights[name], tensor) for name, tensor in policy.state_dict().items())
    assert policy.lm.config._attn_implementation == PACKED
    same(HuggingFaceSampler(policy.eval(), tokenizer).generate(TEXTS, SamplingOptions(2, 12), 2), found)
    # What follows is a training step as it would have been.
    policy.train()
    policy(found.batch(), frozenset({Signal.LOGPS})).logps_N.sum().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)


def test_transformers_own_models_sample_too(world):
    lm = AutoModelForCausalLM.from_pretrained(world_files().lm)
    sampler = HuggingFaceSampler(lm, load_tokenizer(WORLD))
    same(sampler.generate(PROMPTS, WAYS[0], 5), world.generate(PROMPTS, WAYS[0], 5))


def test_prompts_are_read_as_data_preparation_reads_them(byte_tokenizer):
    chat, plain = load_tokenizer(str(byte_tokenizer)), load_tokenizer(str(byte_tokenizer))
    plain.chat_template = None
    talk = (
        {"role": "user", "content": "who"},
        {"role": "assistant", "content": "it"},
        {"role": "user", "content": "w"},
    )
    for tokenizer, prompts in ((chat, (*TEXTS, talk)), (plain, TEXTS)):
        encoder = TextEncoder(tokenizer, PrepareOptions())
        groups = encoder.encode([TextGroup(prompt, ("<|end|>",)) for prompt in prompts])
        found = HuggingFaceSampler(tiny(), tokenizer).generate(prompts, SamplingOptions(1, 2), 0)
        for rollout, group in zip(found.groups, groups, strict=True):
            assert isinstance(group, TokenGroup)
            assert rollout.prompt_tokens.tolist() == group.responses[0][: group.starts[0]].tolist()


def test_answers_are_packed_and_scored_as_they_are(world):
    found = world.generate(PROMPTS, WAYS[0], 5)
    groups, texts = [group.token_group() for group in found.groups], [group.text_group() for group in found.groups]
    # The world's tokenizer is one token a word, so a text that ended reads back as the tokens that were sampled.
    again = TextEncoder(load_tokenizer(WORLD), PrepareOptions()).encode(texts)
    for group, expected, text in zip(groups, again, texts, strict=True):
        for place, ended in enumerate(text.ended):
            assert not ended or group.responses[place].tolist() == expected.responses[place].tolist()
            assert group.starts[place] == expected.starts[place]
    assert sum(answer.ended for answer in found.answers) > 12


def test_every_kind_of_end_ends(byte_tokenizer):
    tokenizer = load_tokenizer(str(byte_tokenizer))
    policy = tiny()
    policy.lm.generation_config.eos_token_id = [7, 9]
    tokenizer.eos_token = "<|pad|>"
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<|pad|>", "<|end|>")]
    found = HuggingFaceSampler(policy, tokenizer).generate(TEXTS, SamplingOptions(200, 40), 0)
    lasts = {int(answer.tokens[-1]) for answer in found.answers if answer.ended}
    assert lasts == {7, 9, *ids}
    for answer in found.answers:
        assert not set(answer.tokens[:-1].tolist()) & lasts
        assert answer.ended or len(answer.tokens) == 40
        assert answer.text == tokenizer.decode(answer.tokens, skip_special_tokens=True)


def test_prompts_that_cannot_be_answered_are_named(tokenizer):
    sampler = HuggingFaceSampler(tiny(), tokenizer, PrepareOptions(max_length=60))
    options = SamplingOptions(1, 40)
    long = "why is the red house green and the dog not so why is the red house green and the dog not so"
    with pytest.raises(ValueError, match=r"^prompt 2 \(and 2 more of 5\) is empty; leave it out$"):
        sampler.generate(["who", " ", "who", long, ()], options, 0)
    with pytest.raises(ValueError, match=r"^prompt 2 has more than 20 tokens, .*max_length 60.*256 positions.*40 new"):
        sampler.generate(["who", long], options, 0)
    refused = sampler.refused(["who", long, ""], options)
    assert list(refused) == [1, 2]
    with pytest.raises(ValueError, match="max_new_tokens 60 leaves no room"):
        sampler.generate(["who"], SamplingOptions(1, 60), 0)
    unlimited = HuggingFaceSampler(tiny(), tokenizer, PrepareOptions(max_length=None))
    with pytest.raises(ValueError, match="the model's 256 positions"):
        unlimited.generate([long * 9], options, 0)
    cut = HuggingFaceSampler(tiny(), tokenizer, PrepareOptions(max_length=60, on_overlong="truncate_prompt"))
    tokens = cut.generate([long], options, 0).groups[0].prompt_tokens
    whole = unlimited.generate([long], options, 0).groups[0].prompt_tokens
    assert tokens.tolist() == [*whole[:1], *whole[-19:]]
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        HuggingFaceSampler(tiny(), bare).generate([({"role": "user", "content": "who"},)], options, 0)


def test_nothing_to_sample(world):
    assert world.generate([], WAYS[0], 0).groups == ()


def test_memory_that_runs_out_halves_the_rows(world, caplog):
    sampler = HuggingFaceSampler(world.model, world.tokenizer)
    rows = []

    def small(module, args, kwargs):
        rows.append(len(kwargs["input_ids"]))
        if rows[-1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = world.model.lm.register_forward_pre_hook(small, with_kwargs=True)
    try:
        with caplog.at_level(logging.WARNING, "grmlight"):
            found = sampler.generate(PROMPTS, WAYS[0], 5)
            assert max(rows) > 5
            rows.clear()
            sampler.generate(PROMPTS, WAYS[0], 5)
            assert max(rows) == 4
        assert [record.message for record in caplog.records if "out of memory" in record.message] == [
            "out of memory: sampling goes on with fewer answers at once (18 did not fit); set rows_per_batch lower to "
            "begin there"
        ]
    finally:
        handle.remove()
    same(found, world.generate(PROMPTS, WAYS[0], 5))


def test_memory_for_not_even_one_row(world):
    sampler = HuggingFaceSampler(world.model, world.tokenizer)

    def full(module, args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = world.model.lm.get_decoder().register_forward_pre_hook(full)
    try:
        with pytest.raises(ValueError, match="out of memory with a single answer"):
            sampler.generate(PROMPTS, WAYS[0], 5)
    finally:
        handle.remove()


def test_weights_gone_bad_are_named(tokenizer):
    policy = tiny()
    with torch.no_grad():
        policy.lm.lm_head.weight[3] = torch.nan
    with pytest.raises(ValueError, match="prompt 1's answers are not finite"):
        HuggingFaceSampler(policy, tokenizer).generate(TEXTS, SamplingOptions(1, 3), 0)


def test_a_run_and_a_folder_are_opened_and_what_is_neither_is_named(tmp_path, world):
    folder = tmp_path / "run" / "model"
    world.model.save_pretrained(folder, load_tokenizer(WORLD))
    kept = {"prepare": {"max_length": 100, "text_rows": "chat"}, "kind": "policy"}
    (folder / "grmlight.json").write_text(json.dumps(kept))
    for path in (folder, folder.parent):
        same(open_sampler(str(path)).generate(PROMPTS, WAYS[0], 5), world.generate(PROMPTS, WAYS[0], 5))
    assert open_sampler(str(folder)).refused(["tell one hats"], SamplingOptions(1, 97))
    with pytest.raises(ValueError, match="there is no directory"):
        open_sampler(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="holds no model"):
        open_sampler(str(tmp_path))
    (folder / "grmlight.json").write_text(json.dumps(kept | {"kind": "judge"}))
    with pytest.raises(ValueError, match="is of kind judge"):
        open_sampler(str(folder))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *(("samples", 0), ("max_new_tokens", 0), ("rows_per_batch", 0), ("top_k", -1)),
        *(("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.1)),
    ],
)
def test_options_that_mean_nothing(entry, value):
    with pytest.raises(ValueError, match=f"^{entry} must be .*got {value}"):
        SamplingOptions(**{entry: value})
