"""Mixtures of experts against their definition: one whole sequence at a time, merged weights, float64."""

import copy
import dataclasses
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from grmlight.models import HeadConfig, Scorer, Signal, load_reward_model
from grmlight.models.expert_config import PHASES, ExpertsConfig
from grmlight.models.experts import ExpertsModel
from tests.models.groups import mixed_groups, starts
from tests.reference.packing import pack_groups
from tests.tiny_models import tiny_backbone

TASKS = {"chat": ["clarity", "empathy", "wit"], "code": ["style"]}
FIRST = {0: 0, 1: 3}
ROUTES = [0, 1, 1, 0]
CAPABILITIES = [2, 0, -1, 1]


def awake(architecture="llama", routing="given", phase="mixture", packing="auto", backbone=None, tasks=None):
    """A model whose adapters and heads all differ, without dropout, in eval mode."""
    config = backbone or tiny_backbone(architecture, lora=True)
    head = HeadConfig(width=16, dropout=0.0)
    model = ExpertsModel(config, ExpertsConfig(tasks or TASKS, routing), head, packing=packing, phase=phase)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("head.", "router.")) or ".up_ARO" in name:
                parameter.normal_(std=0.3, generator=generator)
    return model.eval()


def batch_of(groups, routes=ROUTES, capabilities=CAPABILITIES):
    batch = pack_groups(groups, starts(groups))
    return dataclasses.replace(batch, task_G=torch.tensor(routes), capability_G=torch.tensor(capabilities))


class Definition:
    """A copy of a model in float64, without packing, routing of tokens, or any adapter: weights are merged."""

    def __init__(self, model):
        self.model, self.scale = model, model.backbone_config.lora.alpha / model.backbone_config.lora.r
        state = {name: tensor for name, tensor in model.lm.state_dict().items() if ".adapters." not in name}
        self.lm = AutoModelForCausalLM.from_config(copy.deepcopy(model.lm.config), attn_implementation="eager").eval()
        self.lm.load_state_dict(state)
        self.lm.double().requires_grad_(False)
        self.adapters = {
            name: parameter.detach().double().requires_grad_()
            for name, parameter in model.lm.named_parameters()
            if ".adapters." in name
        }

    def last_state(self, sequence, task=None, expert=None):
        weights = {}
        for name, layer in self.lm.named_modules():
            if f"{name}.adapters.task.up_ARO" in self.adapters:
                change = 0
                for kind, which in (("task", task), ("expert", expert)):
                    if which is not None:
                        down = self.adapters[f"{name}.adapters.{kind}.down_ARI"][which]
                        up = self.adapters[f"{name}.adapters.{kind}.up_ARO"][which]
                        change = change + self.scale * (down.T @ up if isinstance(layer, Conv1D) else up.T @ down)
                weights[f"{name}.weight"] = layer.weight + change
        ids = {"input_ids": torch.tensor([sequence]), "output_hidden_states": True, "use_cache": False}
        output = torch.func.functional_call(self.lm, weights, (), ids)
        return output.hidden_states[-1][0, -1]

    def reward(self, sequence, task, capability=-1):
        heads, phase = self.model.head, self.model.phase
        experts = range(FIRST[task], FIRST[task] + len(list(TASKS.values())[task]))
        if phase == "task":
            return self._head(heads.task[task].summary, self.last_state(sequence, task))
        if phase == "mixture":
            states = [self.last_state(sequence, task, expert) for expert in experts]
            return self._head(heads.mixtures[task].mix, torch.cat(states))
        rewards = [self._head(heads.experts[e].summary, self.last_state(sequence, task, e)) for e in experts]
        return rewards[capability] if capability >= 0 else sum(rewards) / len(rewards)

    def _head(self, layers, state):
        return copy.deepcopy(layers).double()(state)[0]


def expected_rewards(model, groups, routes=ROUTES, capabilities=CAPABILITIES):
    definition, rewards = Definition(model), []
    for sequences, task, capability in zip(groups, routes, capabilities, strict=True):
        rewards += [definition.reward(sequence, task, capability) for sequence in sequences]
    return torch.stack(rewards)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("architecture", "packing"), [("llama", "auto"), ("gpt2", "auto"), ("llama", "never")])
def test_rewards_are_those_of_the_definition(architecture, packing, phase):
    model, groups = awake(architecture, phase=phase, packing=packing), mixed_groups()
    assert model.packed == (packing == "auto")
    found = Scorer(model).score(batch_of(groups))
    torch.testing.assert_close(found.double(), expected_rewards(model, groups).detach(), rtol=1e-5, atol=1e-5)
    other = Scorer(model).score(batch_of(groups, [1, 0, 0, 1]))
    assert (found - other).abs().min() > 1e-3


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_gives_gradients_to_its_own_parameters_alone(phase, recompute):
    """Against autograd through the definition; what does not train in the phase has no gradient at all."""
    capabilities = [2, 0, 0, 1]
    backbone = tiny_backbone("llama", lora=True, gradient_checkpointing=recompute)
    model, groups = awake(phase=phase, backbone=backbone).train(), mixed_groups()
    outputs = model(batch_of(groups, capabilities=capabilities))
    outputs.rewards_N.square().sum().backward()
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    learning = {name for name in model.learning(phase) if not name.startswith("router.")}
    assert found.keys() == learning
    definition, rewards = Definition(model), []
    for sequences, task, capability in zip(groups, ROUTES, capabilities, strict=True):
        rewards += [definition.reward(sequence, task, capability) for sequence in sequences]
    torch.stack(rewards).square().sum().backward()
    for name, tensor in definition.adapters.items():
        if phase != "mixture" and f"adapters.{'expert' if phase == 'experts' else phase}." in name:
            expected = tensor.grad
            assert (found[f"backbone.{name}"] - expected).abs().max() <= 1e-4 * expected.abs().max(), name


def test_each_parameter_trains_in_one_phase():
    model = awake(routing="classifier")
    named = [set(model.learning(phase)) for phase in PHASES]
    assert sum(map(len, named)) == len(set.union(*named))
    assert set.union(*named) == {name for name, each in model.named_parameters() if each.requires_grad}
    assert {"router.score.weight", "head.task.1.summary.0.weight"} <= named[0]
    assert "head.experts.3.summary.0.weight" in named[1]
    assert {"head.mixtures.0.mix.1.weight", "head.mixtures.1.mix.2.bias"} <= named[2]


def test_experts_begin_with_the_head_of_their_task():
    model = awake(phase="task")
    model.begin("experts")
    assert model.phase == "experts"
    for expert, task in enumerate([0, 0, 0, 1]):
        for copied, own in zip(
            model.head.experts[expert].parameters(), model.head.task[task].parameters(), strict=True
        ):
            assert torch.equal(copied, own)
            assert copied is not own


def test_the_router_gives_logits_of_the_bare_backbone_at_the_end_of_the_prompt():
    """And no softmax of its own; adapters, and what is behind the prompt, change nothing."""
    model, groups = awake(routing="classifier"), mixed_groups()
    with torch.no_grad():
        outputs = model(batch_of(groups, [-1] * 4))
    definition = Definition(model)
    for group, sequences in enumerate(groups):
        prompt = sequences[0][: max(starts(groups)[group][0], 1)]
        expected = copy.deepcopy(model.router.score).double()(definition.last_state(prompt)).detach()
        torch.testing.assert_close(outputs.route_logits_GT[group].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(outputs.task_G, outputs.route_logits_GT.argmax(1))
    assert len(outputs.task_G.unique()) == 2, "the test's router must send groups to both tasks"
    assert not torch.allclose(outputs.route_logits_GT.exp().sum(1), torch.ones(4))


@pytest.mark.parametrize("packing", ["auto", "never"])
def test_a_reward_does_not_depend_on_its_company(packing):
    model, groups = awake(routing="classifier", packing=packing), mixed_groups()[:2] + mixed_groups()[3:]
    scorer, begin = Scorer(model), starts(groups)
    together = scorer.score(pack_groups(groups, begin))
    alone = [
        scorer.score(pack_groups([[sequence]], [[begin[number][0]]]))
        for number, group in enumerate(groups)
        for sequence in group
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    order = [2, 0, 1]
    random.Random(1).shuffle(order)
    shuffled = scorer.score(pack_groups([groups[i] for i in order], [begin[i] for i in order]))
    pieces = shuffled.split([len(groups[i]) for i in order])
    torch.testing.assert_close(together, torch.cat([pieces[order.index(i)] for i in range(3)]), rtol=1e-5, atol=1e-5)


def test_the_order_of_experts_does_not_matter_to_a_mixture_that_is_permuted_alike():
    model, groups, order = awake(), mixed_groups(), [2, 0, 1]
    twin = copy.deepcopy(model)
    hidden = 32
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if ".adapters.expert." in name:
                parameter[:3] = dict(model.named_parameters())[name][order]
        weight = model.head.mixtures[0].mix[0].weight.unflatten(1, (3, hidden))
        twin.head.mixtures[0].mix[0].weight.copy_(weight[:, order].flatten(1))
    batch = batch_of(groups)
    torch.testing.assert_close(Scorer(twin).score(batch), Scorer(model).score(batch), rtol=1e-5, atol=1e-5)
    twin.head.mixtures[0].mix[0].weight.data.copy_(model.head.mixtures[0].mix[0].weight)
    assert not torch.allclose(Scorer(twin).score(batch), Scorer(model).score(batch), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("routing", ["classifier", "given"])
def test_a_saved_model_is_the_same(routing, phase, tmp_path):
    model, batch = awake(routing=routing, phase=phase), batch_of(mixed_groups())
    model.reward_shift.fill_(0.5)
    model.reward_scale.fill_(2.0)
    model.save_pretrained(tmp_path / "model")
    loaded = load_reward_model(tmp_path / "model")
    assert type(loaded) is ExpertsModel
    assert (loaded.phase, loaded.experts_config, loaded.backbone_config.lora) == (
        phase,
        model.experts_config,
        model.backbone_config.lora,
    )
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(Scorer(loaded).score(batch), Scorer(model).score(batch))


def test_every_head_is_in_the_state_and_in_the_file(tmp_path):
    """The release kept its experts' heads in a plain dictionary: neither trained nor saved."""
    model = awake(routing="classifier")
    heads = {f"head.task.{task}." for task in range(2)} | {f"head.experts.{expert}." for expert in range(4)}
    heads |= {f"head.mixtures.{task}." for task in range(2)} | {"router."}
    model.save_pretrained(tmp_path)
    for names in (model.state_dict(), dict(model.named_parameters()), load_file(tmp_path / "experts.safetensors")):
        assert all(any(name.startswith(head) for name in names) for head in heads)


def test_loading_is_strict(tmp_path):
    awake(routing="classifier").save_pretrained(tmp_path)
    path = tmp_path / "experts.safetensors"
    tensors = load_file(path)
    gone = {name: tensor for name, tensor in tensors.items() if name != "head.experts.2.summary.0.bias"}
    save_file(gone, path)
    with pytest.raises(ValueError, match="missing head.experts.2.summary.0.bias"):
        load_reward_model(tmp_path)
    save_file(tensors | {"head.experts.9.bias": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="unexpected head.experts.9.bias"):
        load_reward_model(tmp_path)
    save_file(tensors | {"router.score.bias": torch.zeros(5)}, path)
    with pytest.raises(ValueError, match="another shape router.score.bias"):
        load_reward_model(tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        load_reward_model(tmp_path)
    (tmp_path / "grmlight.json").write_text('{"kind": "experts"}')
    with pytest.raises(ValueError, match="holds no experts"):
        load_reward_model(tmp_path)


def test_the_causal_lm_in_the_folder_is_the_backbone_as_it_was(tmp_path):
    model = awake()
    model.save_pretrained(tmp_path)
    lm, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    state = model.lm.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in lm.state_dict().items())


def test_heads_stay_in_float32():
    model = awake(routing="classifier").to(torch.bfloat16)
    parts = [*model.head.parameters(), *model.router.parameters()]
    assert {parameter.dtype for parameter in parts} == {torch.float32}


def test_what_cannot_be_is_said_in_one_line():
    with pytest.raises(ValueError, match="set backbone.lora"):
        ExpertsModel(tiny_backbone("llama"), ExpertsConfig(TASKS))
    with pytest.raises(ValueError, match="name at least one task"):
        ExpertsConfig({})
    with pytest.raises(ValueError, match="'chat' needs one or more different"):
        ExpertsConfig({"chat": ["wit", "wit"]})
    with pytest.raises(ValueError, match="routing must be"):
        ExpertsConfig(TASKS, "soft")
    model, groups = awake(), mixed_groups()
    with pytest.raises(ValueError, match="rewards alone, not logps"):
        model(batch_of(groups), frozenset({Signal.LOGPS}))
    with pytest.raises(ValueError, match="the batch carries none"):
        model(pack_groups(groups))
    with pytest.raises(ValueError, match=r"rows .*: their category is none of the tasks chat, code"):
        model(batch_of(groups, [0, 1, -1, 0]))
    backbone = dataclasses.replace(tiny_backbone("llama", lora=True).lora, targets=("nothing",))
    with pytest.raises(ValueError, match="no linear layers"):
        awake(backbone=dataclasses.replace(tiny_backbone("llama"), lora=backbone))
