"""PolicyModule: a pack's loss and gradients are those of its sequences computed one by one."""

import copy
import math

import pytest
import torch

from grmlight.data.select import better_alone, followed_by
from grmlight.models import BackboneConfig, PolicyModel
from grmlight.policy.alignment import PolicyModule
from grmlight.policy.objectives import AlignmentObjective, Anchor
from tests.models.groups import mixed_groups, starts
from tests.models.plain import assert_same_gradients, wake_adapters
from tests.reference.packing import pack_groups
from tests.tiny_models import tiny_backbone, tiny_reward_model

OBJECTIVES = {
    "sft": AlignmentObjective("sft"),
    "sft token mean": AlignmentObjective("sft", form="token_mean"),
    "dpo": AlignmentObjective("dpo", beta=0.3),
    "dpo short": AlignmentObjective("dpo", beta=0.3, length_penalty=0.05),
    "ipo": AlignmentObjective("ipo", beta=0.3),
    "ipo daa": AlignmentObjective("ipo", beta=0.3, scale="daa"),
    "slic": AlignmentObjective("slic", beta=0.3),
    "rpo": AlignmentObjective("rpo", beta=0.3, anchor=Anchor(eta=0.5)),
    "rpo openrlhf": AlignmentObjective("rpo", beta=0.3, anchor="openrlhf"),
    "rpo reference": AlignmentObjective("rpo", beta=0.3, anchor=Anchor(eta=0.5, base="reference", samples=2)),
}
GROUPS = mixed_groups()
WEIGHTS, LABELS = [[2.0], [], [0.5], [1.0]], [[1.0], [], [0.8], [0.5]]
BASES = [group[-1:] + [sequence[:6] for sequence in group[-1:]] for group in GROUPS[::-1]]
"""Stand for what a reference would have sampled, two answers a group."""


def policy(lora):
    """A tiny policy away from its reference."""
    model = PolicyModel(tiny_backbone(lora=lora), reference=True)
    wake_adapters(model)
    torch.manual_seed(1)
    if not lora:
        with torch.no_grad():
            for parameter in model.lm.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def module_of(objective, model):
    module = PolicyModule(model.backbone_config, objective)
    module.model = model
    return module


def batch_of(objective):
    batch = pack_groups(GROUPS, starts(GROUPS), weights=WEIGHTS, labels=LABELS)
    if objective.kind == "sft":
        return better_alone(batch)
    if objective.pull and objective.pull.base == "reference":
        return followed_by(batch, pack_groups(BASES, starts(BASES), comparisons=[[]] * 4))
    return batch


def one_by_one(lm, sequence, start):
    table = lm(input_ids=torch.tensor([sequence]), use_cache=False).logits[0].float().log_softmax(-1)
    places = range(max(start, 1), len(sequence))
    return sum((table[place - 1, sequence[place]] for place in places), torch.zeros(())), len(places)


def of_margin(objective, h):
    """The loss of a margin, as published."""
    if objective.kind == "ipo" and objective.scale == "daa":
        return objective.beta**2 * (h - 1 / objective.beta) ** 2
    if objective.kind == "ipo":
        return (h - 1 / (2 * objective.beta)) ** 2
    if objective.kind == "slic":
        return (1 - objective.beta * h).clamp(min=0)
    return -torch.sigmoid(objective.beta * h).log()


def slow_loss(objective, model):
    """The loss from each sequence alone, full logits, and the formulas written out."""
    reference = model.reference

    def all_of(groups):
        found = []
        for group, begins in zip(groups, starts(groups), strict=True):
            found.append([one_by_one(model.lm, *each) for each in zip(group, begins, strict=True)])
        return found

    def start_model(sequence, begin):
        with torch.no_grad():
            if reference is not None:
                return one_by_one(reference, sequence, begin)[0]
            with model.backbone.disable_adapter():
                return one_by_one(model.lm, sequence, begin)[0]

    beta, total = objective.beta, torch.zeros(())
    bases = all_of(BASES) if objective.pull and objective.pull.base == "reference" else [None] * 4
    for index, (group, begins, found) in enumerate(zip(GROUPS, starts(GROUPS), all_of(GROUPS), strict=True)):
        if len(group) == 1:
            continue
        (better, tokens), (worse, worse_tokens) = found[:2]
        label, weight = LABELS[index][0], WEIGHTS[index][0]
        h = better - worse - start_model(group[0], begins[0]) + start_model(group[1], begins[1])
        h = h + objective.length_penalty / beta * (tokens - worse_tokens)
        if objective.kind == "sft":
            loss = -better / (tokens if objective.form == "token_mean" else 1)
        else:
            loss = label * of_margin(objective, h) + (1 - label) * of_margin(objective, -h)
        if objective.pull:
            base = [found[0]] if bases[index] is None else bases[index]
            mean = objective.pull.reduction == "mean"
            pull = sum(-logp / (count if mean else 1) for logp, count in base) / len(base)
            loss = loss + objective.pull.eta * (beta if objective.pull.times_beta else 1) * pull
        total = total + weight * loss
    return total / len(GROUPS)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_pack_is_its_sequences_one_by_one(name, lora):
    """A group of four, two pairs and a lone answer, with weights and soft labels."""
    objective, model = OBJECTIVES[name], policy(lora)
    twin = copy.deepcopy(model)
    twin.lm.set_attn_implementation("eager")
    if twin.reference is not None:
        twin.reference.set_attn_implementation("eager")
    module = module_of(objective, model)
    assert model.packed
    batch = batch_of(objective)
    found = module.objective(module(batch, module.signals), batch).loss
    expected = slow_loss(objective, twin)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found.backward()
    expected.backward()
    assert_same_gradients(model, twin, tolerance=2e-5)


def test_rewards_are_the_implicit_ones_and_log_probs_are_logged():
    model = policy(lora=True)
    module = module_of(AlignmentObjective("ipo", beta=0.25), model)
    batch = batch_of(module.alignment)
    outputs = module(batch, module.signals)
    ratios_N = outputs.logps_N - outputs.reference_logps_N
    assert torch.equal(outputs.rewards_N, 0.25 * ratios_N.detach())
    figures = module.figures(outputs, batch)
    assert list(figures) == ["chosen_logps", "rejected_logps", "chosen_log_ratio", "rejected_log_ratio"]
    expected = float(ratios_N[batch.better_C].detach().sum()) / 4
    assert float(figures["chosen_log_ratio"]) == pytest.approx(expected, rel=1e-5)
    sft = module_of(AlignmentObjective("sft"), model)
    assert list(sft.figures(sft(batch_of(sft.alignment), sft.signals), batch_of(sft.alignment))) == ["chosen_logps"]


def test_a_loss_before_the_first_step_is_that_of_no_margin():
    for kind, expected in (("dpo", math.log(2)), ("slic", 1.0), ("ipo", 25.0)):
        module = module_of(kind, PolicyModel(tiny_backbone(lora=True)))
        batch = pack_groups(GROUPS[:1], starts(GROUPS[:1]))
        loss = module.objective(module(batch, module.signals), batch).loss
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: PolicyModule("x", "orpo"), "there is no 'orpo'; choose from sft, dpo, ipo, slic, rpo"),
        (lambda folder: PolicyModule("x", reference="hub"), "reference must be 'store' or 'copy', got 'hub'"),
        (lambda folder: PolicyModule(BackboneConfig("x", frozen=True)), "a frozen policy learns nothing"),
        (lambda folder: PolicyModule(str(folder)).setup("fit"), "is a reward model; a policy is a causal LM"),
    ],
)
def test_what_is_no_policy_is_refused_in_a_line(make, said, tmp_path):
    tiny_reward_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_batch_without_a_reference_is_refused():
    module = module_of("dpo", PolicyModel(tiny_backbone()))
    batch = pack_groups(GROUPS, starts(GROUPS))
    with pytest.raises(ValueError, match="carries no reference log-probs"):
        module(batch, module.signals)
