"""A step's loss and gradients: packs on any number of ranks against answers computed one at a time, in full logits."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from grmlight.data.encode import TokenGroup
from grmlight.data.encode import pack as pack_groups
from grmlight.models import Outputs, PolicyModel, Signal
from grmlight.policy.online.advantages import whiten
from grmlight.policy.online.controllers import KlOptions
from grmlight.policy.online.experience import SCORE, Experience, streams, token_rewards
from grmlight.policy.online.minibatches import Chosen, Packer, minibatches, token_weights
from grmlight.policy.online.objective import Targets, targets, terms
from grmlight.policy.online.options import Update
from grmlight.policy.sampler import SamplingOptions
from tests.policy.online.parts import Canned, small_backbone

COEFFICIENT = 0.3
VALUES = frozenset({Signal.LOGPS, Signal.VALUES})


def experience():
    """Rollouts with old numbers near those of the model, as after some steps; one answer has no score."""
    rollouts = Canned().generate(["a"] * 5, SamplingOptions(samples=4), 7, range(5)).groups
    draw = np.random.default_rng(1)
    tokens = sum(len(answer.tokens) for rollout in rollouts for answer in rollout.answers)
    rows = [torch.from_numpy(draw.normal(-4.6, 0.3, tokens)) for _ in range(2)]
    scores_N = torch.from_numpy(draw.normal(size=20))
    scores_N[6] = math.nan
    values = {SCORE: torch.from_numpy(draw.normal(0, 0.3, tokens))}
    return Experience(rollouts, {"a": scores_N}, scores_N, *rows, values)


def model_of(lora=False, critic="shared"):
    model = PolicyModel(small_backbone(lora=lora), reference=True, values=1, critic=critic)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def step_of(found, prompts, update):
    """What a step on these prompts is made of."""
    told = streams(found, token_rewards(found, 0.1), "gae", update.gamma, update.lam, "group")
    chosen = Chosen.of(found, prompts)
    advantage_L = whiten(told.advantages[SCORE][chosen.places_L], chosen.known_N[chosen.response_L])
    return targets(found, told, chosen, advantage_L, update)


def packed(model, found, prompts, update, kl, ranks=1, tokens_per_pack=10**6):
    """Loss and terms summed over all packs of all ranks, and the gradients."""
    target = step_of(found, prompts, update)
    sums, packs = {}, []
    model.zero_grad()
    for rank in range(ranks):
        mine = Packer(found.rollouts, tokens_per_pack, ranks, rank).packs(prompts)
        packs.append(len(mine))
        for pack in mine:
            outputs = model(pack.batch, VALUES)
            own = terms(outputs, pack.batch, target.of(pack, torch.device("cpu")), update, kl, COEFFICIENT)
            own["loss"].backward()
            sums = {name: sums.get(name, 0.0) + term.item() for name, term in own.items()}
    assert len(set(packs)) == 1
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return sums, gradients, sum(packs)


def one_by_one(model, found, prompts, update, kl):
    """The same in float64, from each answer alone and the formulas written out."""
    told = streams(found, token_rewards(found, 0.1), "gae", update.gamma, update.lam, "group")
    model = model.double()
    model.zero_grad()
    known, places, place = [], {}, 0
    answers = [(number, answer, rollout) for number, rollout in enumerate(found.rollouts) for answer in rollout.answers]
    for index, (number, answer, _) in enumerate(answers):
        if number in prompts and math.isfinite(found.scores_N[index]):
            known.append(index)
            places[index] = range(place, place + len(answer.tokens))
        place += len(answer.tokens)
    every = [where for index in known for where in places[index]]
    raw = told.advantages[SCORE][every]
    mean, deviation = raw.mean(), (raw.var(correction=0) + 1e-8).sqrt()
    loss = torch.zeros((), dtype=torch.float64)
    for index in known:
        _, answer, rollout = answers[index]
        ids = torch.from_numpy(np.concatenate([rollout.prompt_tokens, answer.tokens]))
        hidden = model.lm.get_decoder()(
            input_ids=ids[None], position_ids=torch.arange(len(ids))[None], attention_mask=None, use_cache=False
        ).last_hidden_state[0]
        logps = model.lm.get_output_embeddings()(hidden).log_softmax(-1)
        first = len(rollout.prompt_tokens)
        new = [logps[spot - 1, ids[spot]] for spot in range(first, len(ids))]
        ratios = [(logp - found.logps_L[where]).exp() for logp, where in zip(new, places[index], strict=True)]
        if update.ratio == "answer":
            ratios = [math.prod(ratios)] * len(ratios)
        for spot, (where, ratio) in enumerate(zip(places[index], ratios, strict=True)):
            weight = 1 / len(every) if update.average == "tokens" else 1 / len(known) / len(new)
            advantage = (told.advantages[SCORE][where] - mean) / deviation
            clipped = ratio.clamp(1 - update.clip, 1 + update.clip)
            loss = loss - weight * torch.minimum(ratio * advantage, clipped * advantage)
            value = model.values(hidden[first + spot - 1][None])[0, 0]
            old, target = found.values[SCORE][where], told.returns[SCORE][where]
            near = old + (value - old).clamp(-update.value_clip, update.value_clip)
            worse = torch.maximum((value - target) ** 2, (near - target) ** 2)
            loss = loss + update.value_weight * weight * worse / 2
            if kl.where == "loss":
                log_ratio = new[spot] - found.reference_logps_L[where]
                k3 = (-log_ratio).exp() - 1 + log_ratio
                # An answer that learns as a whole is held as a whole.
                held = weight * len(new) if update.ratio == "answer" else weight
                loss = loss + COEFFICIENT * held * (k3 if kl.estimator == "k3" else log_ratio**2 / 2)
    loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.float()
    return loss.item(), gradients


CASES = [
    (Update(), KlOptions()),
    (Update(ratio="answer", average="answers"), KlOptions()),
    (Update(average="answers"), KlOptions(where="loss")),
    (Update(average="answers"), KlOptions(where="loss", estimator="k2")),
    (Update(ratio="answer", average="answers"), KlOptions(where="loss", estimator="k2")),
    (Update(ratio="answer", average="tokens"), KlOptions(where="loss")),
]


@pytest.mark.parametrize(("update", "kl"), CASES)
@pytest.mark.parametrize("cut", [(1, 10**6), (1, 40), (2, 20), (3, 10**6)], ids=str)
def test_packs_equal_answers_one_at_a_time(update, kl, cut):
    update = update.of("gae", whitens=True)
    model, found, prompts = model_of(), experience(), [1, 3, 4]
    sums, gradients, packs = packed(model, found, prompts, update, kl, *cut)
    assert (packs > cut[0]) == (cut[1] < 10**6)
    plain = PolicyModel(small_backbone(), packing="never", values=1)
    plain.load_state_dict(model.state_dict())
    loss, expected = one_by_one(plain, found, prompts, update, kl)
    assert sums["loss"] == pytest.approx(loss, rel=1e-5)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert float((gradients[name].double() - gradient).abs().max()) <= 1e-5 * max(scale, 1e-3), name


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_the_coefficient_means_the_same_whatever_the_length_of_an_answer(advantage):
    """The share of the KL in a token's gradient, beside that of the advantage, for answers of 1 and of 20 tokens."""
    shares = []
    update, kl = Update().of(advantage, whitens=False), KlOptions(where="loss", estimator="k2")
    for tokens in (1, 20):
        batch = pack_groups([TokenGroup((np.arange(3, 5 + tokens),), (2,))])
        weight_L = token_weights(torch.tensor([tokens]), torch.tensor([True]), update.average)
        ones_L = torch.ones(tokens, dtype=torch.float64)
        logps_L = (-ones_L).requires_grad_()
        found = terms(
            Outputs(None, logps_L=logps_L),
            batch,
            Targets(weight_L, weight_L, ones_L, -ones_L, -1.5 * ones_L),
            update,
            kl,
            COEFFICIENT,
        )
        gradients = [torch.autograd.grad(found[name], logps_L, retain_graph=True)[0] for name in ("policy", "kl")]
        shares.append((gradients[1] / gradients[0]).tolist())
    assert shares[1] == pytest.approx([shares[0][0]] * 20)


@pytest.mark.parametrize("critic", ["shared", "apart"])
@pytest.mark.parametrize("lora", [False, True])
def test_the_critic_apart_learns_without_the_policy(lora, critic):
    """The value loss reaches the policy's own parameters only where both share them."""
    model, found = model_of(lora, critic), experience()
    batch = Packer(found.rollouts, 10**6).packs([0, 1])[0].batch
    outputs = model(batch, VALUES)
    outputs.values_KL.square().sum().backward(retain_graph=True)
    reached = {name for name, each in model.named_parameters() if each.grad is not None and each.grad.any()}
    own = {name for name in reached if model.of_critic(name)}
    assert own
    assert bool(reached - own) == (critic == "shared")
    model.zero_grad()
    outputs.logps_L.sum().backward()
    assert not any(model.of_critic(n) and p.grad is not None and p.grad.any() for n, p in model.named_parameters())


@pytest.mark.parametrize("lora", [False, True])
def test_a_critic_apart_is_no_part_of_the_saved_policy(lora, tmp_path):
    model, found = model_of(lora, "apart"), experience()
    batch = Packer(found.rollouts, 10**6).packs([0, 1])[0].batch
    model.save_pretrained(tmp_path)
    again = PolicyModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(
            again.eval()(batch, VALUES - {Signal.VALUES}).logps_L, model.eval()(batch).logps_L, atol=1e-5, rtol=1e-5
        )
        blank = model.blank()
        blank.load_state_dict({n: t for n, t in model.state_dict().items() if "reference" not in n})
        torch.testing.assert_close(blank.eval()(batch, VALUES).values_KL, model(batch, VALUES).values_KL)


def test_weights_sum_to_one_over_what_is_known():
    tokens_N, known_N = torch.tensor([3, 1, 2]), torch.tensor([True, False, True])
    even, whole = (token_weights(tokens_N, known_N, average) for average in ("tokens", "answers"))
    torch.testing.assert_close(even, torch.tensor([0.2] * 3 + [0.0] + [0.2] * 2).double())
    torch.testing.assert_close(whole, torch.tensor([1 / 6] * 3 + [0.0] + [1 / 4] * 2).double())
    assert not token_weights(tokens_N, torch.zeros(3, dtype=torch.bool), "answers").any()


def test_every_prompt_is_in_one_minibatch_of_an_epoch():
    found = minibatches(10, 3, seed=5)
    assert sorted(np.concatenate(found).tolist()) == list(range(10))
    assert sorted(map(len, found)) == [3, 3, 4]
    assert np.concatenate(minibatches(10, 3, seed=6)).tolist() != np.concatenate(found).tolist()


def test_many_answers_to_one_prompt_are_cut_into_parts():
    rollouts = Canned().generate(["a"], SamplingOptions(samples=50), 0, [0]).groups
    packs = [pack for rank in range(2) for pack in Packer(rollouts, 60, 2, rank).packs([0])]
    assert len(packs) > 2
    counted = torch.cat([pack.places_L[pack.count_L > 0] for pack in packs])
    tokens = sum(len(answer.tokens) for answer in rollouts[0].answers)
    assert sorted(counted.tolist()) == list(range(tokens))
    assert dataclasses.is_dataclass(packs[0])
