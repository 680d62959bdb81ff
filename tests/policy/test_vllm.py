"""What goes to vLLM and what comes back, in the shapes that its documentation gives; vLLM itself is not run here."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from grmlight.data.options import PrepareOptions
from grmlight.data.tokenizer import load_tokenizer
from grmlight.policy.sampler import SamplingOptions, open_sampler
from grmlight.policy.vllm import VllmSampler, answers, parameters, reader_of

WORLD = "package:grmlight.lab/assets/lm"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(WORLD)


def _completion(index, tokens, reason, logps=None):
    logprobs = None
    if logps is not None:
        # The drawn token's entry, beside which vLLM may give others.
        logprobs = [
            {token: SimpleNamespace(logprob=logp), 99: SimpleNamespace(logprob=-0.1)}
            for token, logp in zip(tokens, logps, strict=True)
        ]
    return SimpleNamespace(index=index, token_ids=tuple(tokens), finish_reason=reason, logprobs=logprobs, text="")


def test_options_become_sampling_parameters():
    found = parameters(SamplingOptions(3, 20, 0.7, 0.9, 40), {9, 4}, seed=5, number=2)
    assert found | {"seed": 0} == {
        "n": 3,
        "max_tokens": 20,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 0,
        "stop_token_ids": [4, 9],
        "logprobs": 0,
        "detokenize": False,
    }
    seeds = {parameters(SamplingOptions(), (), seed, number)["seed"] for seed in range(20) for number in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert found["seed"] == parameters(SamplingOptions(), (), 5, 2)["seed"]


def test_completions_become_answers(tokenizer):
    second = _completion(1, [50, 90], "length")
    first = _completion(0, [51, 91, 4], "stop", [-0.5, -1.25, -2.0])
    found = answers(tokenizer, [second, first])
    assert [(each.text, each.ended) for each in found] == [("dog blue", True), ("cat red", False)]
    assert found[0].tokens.tolist() == [51, 91, 4]
    assert found[0].logps.dtype == np.float32
    assert found[0].logps.tolist() == [-0.5, -1.25, -2.0]
    assert found[1].logps is None


def test_what_a_policy_in_a_folder_reads_and_ends_with(tokenizer):
    from grmlight.data.names import resolve

    reader, ends = reader_of(resolve(WORLD, "policy"), tokenizer, PrepareOptions())
    assert (reader.positions, ends) == (128, {4})
    assert reader.read(["tell one hats"], 64)[0].tolist() == [2, 36, 29, 20, 3]


def test_an_engines_answers_become_rollouts(tokenizer, monkeypatch):
    class Engine:
        """Takes and gives what `vllm.LLM.generate` does."""

        def generate(self, prompts, parameters):
            self.given = prompts, parameters
            return [
                SimpleNamespace(outputs=[_completion(n, [50, 4], "stop", [-1.0, -0.5]) for n in range(one["n"])])
                for one in parameters
            ]

    monkeypatch.setitem(__import__("sys").modules, "vllm", SimpleNamespace(SamplingParams=dict))
    from grmlight.data.names import resolve

    engine = Engine()
    reader, ends = reader_of(resolve(WORLD, "policy"), tokenizer, PrepareOptions())
    sampler = VllmSampler(engine, reader, tokenizer, ends)
    found = sampler.generate(["tell one hats", "tell two hats"], SamplingOptions(samples=2), 3, numbers=[7, 8])
    assert engine.given[0] == [{"prompt_token_ids": [2, 36, 29, 20, 3]}, {"prompt_token_ids": [2, 36, 30, 20, 3]}]
    assert [one["seed"] for one in engine.given[1]] == [
        parameters(SamplingOptions(), (), 3, number)["seed"] for number in (7, 8)
    ]
    assert (found.sampler, [answer.text for answer in found.answers]) == ("vllm", ["cat"] * 4)
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        sampler.generate(["tell one hats", ""], SamplingOptions(), 3)
    assert sampler.refused([""], SamplingOptions()) == {0: "is empty; leave it out"}


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_it_is_one_line():
    with pytest.raises(ValueError, match=r"^vLLM is not installed; pip install 'grmlight\[vllm\]', or name"):
        open_sampler(f"vllm:{WORLD}")
