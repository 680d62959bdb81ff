"""An ensemble is its members: their rewards, their gradients, their folders."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from grmlight.losses import preference_loss, sft_log_sigmoid
from grmlight.models import (
    EnsembleConfig,
    EnsembleModel,
    HeadConfig,
    LoraOptions,
    RewardModel,
    Scorer,
    Signal,
    load_reward_model,
    training_memory,
)
from grmlight.models.aggregation import aggregate
from tests.ensembles import KINDS, SEED, alone, differing, own_names, tiny_ensemble
from tests.models import twins
from tests.models.groups import mixed_groups
from tests.models.plain import wake_adapters
from tests.reference.packing import pack_groups
from tests.tiny_models import tiny_backbone, tiny_reward_model

SIGNALS = frozenset({Signal.CHOSEN_LOGPS})


def member_loss(outputs, batch):
    """A member's own loss: Bradley-Terry, and the paper's text generation."""
    loss_C = preference_loss(outputs.rewards_N[batch.better_C], outputs.rewards_N[batch.worse_C])
    return (0.9 * loss_C + 0.1 * sft_log_sigmoid(outputs.logps_N[batch.better_C], 0.1)).sum()


@pytest.mark.parametrize("members", KINDS)
def test_members_give_what_they_give_alone(members):
    model, batch = tiny_ensemble(members), pack_groups(mixed_groups())
    model.recenter([batch])
    outputs = model(batch, SIGNALS)
    expected = [alone(model, number)(batch, SIGNALS) for number in range(3)]
    for found, own in zip(outputs.members, expected, strict=True):
        torch.testing.assert_close(found.rewards_N, own.rewards_N, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.logps_N, own.logps_N, rtol=1e-6, atol=1e-6, equal_nan=True)
    raw_KN = torch.stack([own.rewards_N for own in expected])
    recentered_KN = (raw_KN - raw_KN.mean(1, keepdim=True)) / raw_KN.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(outputs.rewards_KN, recentered_KN, rtol=1e-5, atol=1e-5)
    for aggregation in ("mean", "wco", "uwo"):
        model.aggregate_by(aggregation, 0.5)
        wanted_N = aggregate(recentered_KN, aggregation, 0.5)
        torch.testing.assert_close(model(batch).rewards_N, wanted_N, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packing", ["auto", "never"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("members", KINDS)
def test_each_members_gradients_are_those_of_the_member_trained_alone(members, recompute, packing):
    """The loss is the mean over the members, so gradients are a k-th; of shared weights the sum of the members'."""
    model = tiny_ensemble(members, gradient_checkpointing=recompute, packing=packing)
    batch = pack_groups(mixed_groups())
    learning = [parameter.requires_grad for parameter in model.parameters()]
    outputs = model(batch, SIGNALS)
    torch.stack([member_loss(member, batch) for member in outputs.members]).mean().backward()
    assert learning == [parameter.requires_grad for parameter in model.parameters()]
    check_gradients({name: p.grad for name, p in model.named_parameters() if p.requires_grad}, model, batch)


def check_gradients(found, model, batch):
    """Compare gradients, by the ensemble's names, with those of its members trained alone."""
    expected = {}
    for number in range(model.config.size):
        single = alone(model, number)
        member_loss(single(batch, SIGNALS), batch).backward()
        names = own_names(model, number)
        for name, parameter in single.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                share = parameter.grad / model.config.size
                expected[names[name]] = expected[names[name]] + share if names[name] in expected else share
    assert found.keys() == expected.keys()
    whole = torch.stack([grad.norm() for grad in expected.values()]).norm()
    for name, grad in expected.items():
        error = (found[name] - grad).abs().max()
        assert error <= max(1e-5 * grad.abs().max(), 1e-6 * whole), f"{name}: {error} of {grad.abs().max()}"


@pytest.mark.parametrize("members", KINDS)
def test_members_begin_as_models_of_seeds_one_apart(members, tmp_path):
    tiny_reward_model("llama").lm.save_pretrained(tmp_path)
    config = tiny_backbone("llama", members == "adapters")
    options = {"name": str(tmp_path), "pretrained": True, "config": None, "lora": config.lora}
    backbone = type(config)(**options)
    head = HeadConfig(width=16)
    model = EnsembleModel.build(backbone, head, EnsembleConfig(3, members), SEED)
    for number in range(3):
        assert differing(alone(model, number), RewardModel(backbone, head, SEED + number)) == 0
    assert differing(alone(model, 1), alone(model, 2)) > 0.01


@pytest.mark.parametrize("members", ["models", "adapters"])
def test_the_reference_is_computed_once_for_all(members):
    config = tiny_backbone("llama", members == "adapters")
    model = EnsembleModel.build(config, HeadConfig(width=16), EnsembleConfig(2, members), reference=True)
    batch, runs = pack_groups(mixed_groups()), []
    before = model(batch, frozenset({Signal.LOGPS})).members[0].logps_N
    wake_adapters(model)
    with torch.no_grad():
        model.trunks[0].lm.get_output_embeddings().weight.mul_(1.0 if members == "adapters" else 1.5)
    model.lm.get_decoder().register_forward_hook(lambda *_: runs.append(1))
    outputs = model(batch, frozenset({Signal.LOGPS, Signal.REFERENCE_LOGPS}))
    torch.testing.assert_close(outputs.reference_logps_N, before)
    assert all(member.reference_logps_N is outputs.reference_logps_N for member in outputs.members)
    # Adapters run the shared LM for the reference and for each member, models run the copy and each their own.
    assert len(runs) == (3 if members == "adapters" else 1)


@pytest.mark.parametrize("members", KINDS)
def test_scores_do_not_depend_on_the_batch_or_the_mode(members):
    model, groups = tiny_ensemble(members, aggregation="uwo"), mixed_groups()
    model.recenter([pack_groups(groups)])
    together = Scorer(model).score(pack_groups(groups))
    one_by_one = torch.cat([Scorer(model).score(pack_groups([group])) for group in groups])
    torch.testing.assert_close(one_by_one, together, rtol=1e-5, atol=1e-5)
    assert model.training


def test_recentering_leaves_fillers_out_and_takes_any_cut():
    model, groups = tiny_ensemble("heads"), mixed_groups()
    model.recenter([pack_groups(groups[:2]), pack_groups(groups[2:])])
    cut = {name: tensor.clone() for name, tensor in model.statistics().items()}
    filler = pack_groups([*groups, groups[0]], counts=[1, 1, 1, 1, 0])
    model.recenter([filler])
    for name, tensor in model.statistics().items():
        torch.testing.assert_close(tensor, cut[name], rtol=1e-5, atol=1e-6)
    rewards_KN = Scorer(model).outputs(pack_groups(groups)).rewards_KN
    torch.testing.assert_close(rewards_KN.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(rewards_KN.var(1, correction=0), torch.ones(3), rtol=1e-5, atol=1e-5)


def test_a_member_that_knows_one_reward_is_named():
    model = tiny_ensemble("heads")
    for parameter in model.trunks[0].head.members[1].parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match="member 1 gives all 9 reference responses the same reward"):
        model.recenter([pack_groups(mixed_groups())])
    torch.nn.init.constant_(model.trunks[0].head.members[2].summary[0].weight, torch.nan)
    with pytest.raises(ValueError, match="member 1, 2 gives"):
        model.recenter([pack_groups(mixed_groups())])


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("members", KINDS)
def test_a_loaded_ensemble_scores_as_the_saved_one(members, architecture, tmp_path):
    model = tiny_ensemble(members, aggregation="uwo", architecture=architecture)
    batch = pack_groups(mixed_groups())
    model.recenter([batch])
    before = Scorer(model).score(batch)
    for _ in range(2):  # the second in the place of the first
        model.save_pretrained(tmp_path / "model")
    assert torch.equal(Scorer(model).score(batch), before)
    loaded = load_reward_model(tmp_path / "model")
    assert isinstance(loaded, EnsembleModel)
    assert loaded.config == model.config
    assert torch.equal(loaded.reward_shift_K, model.reward_shift_K)
    torch.testing.assert_close(Scorer(loaded).score(batch), before, rtol=1e-5, atol=1e-5)
    other = EnsembleModel.from_pretrained(tmp_path / "model", aggregation="wco")
    model.aggregate_by("wco")
    torch.testing.assert_close(Scorer(other).score(batch), Scorer(model).score(batch), rtol=1e-5, atol=1e-5)


def test_whole_members_are_reward_models_of_their_own(tmp_path):
    model, batch = tiny_ensemble("models"), pack_groups(mixed_groups())
    model.save_pretrained(tmp_path)
    for number in range(3):
        loaded = RewardModel.from_pretrained(tmp_path / f"member-{number}")
        assert torch.equal(Scorer(loaded).score(batch), Scorer(alone(model, number)).score(batch))


def test_nothing_of_an_ensemble_stays_under_another_model(tmp_path):
    tiny_ensemble("models").save_pretrained(tmp_path)
    tiny_ensemble("heads").save_pretrained(tmp_path)
    assert not list(tmp_path.glob("member-*"))
    tiny_reward_model("llama").save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    assert isinstance(load_reward_model(tmp_path), RewardModel)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda tensors: tensors.pop("reward_scale_K"), "missing reward_scale_K"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "unexpected more"),
        (lambda tensors: tensors.update(reward_scale_K=torch.ones(4)), "of another shape reward_scale_K"),
        (lambda tensors: tensors.pop("trunks.0.head.members.2.summary.0.bias"), r"missing .*members\.2\.summary"),
    ],
)
def test_tensors_that_do_not_fit_are_named(break_it, message, tmp_path):
    tiny_ensemble("adapters").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "members.safetensors")
    break_it(tensors)
    save_file(tensors, tmp_path / "members.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        EnsembleModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_ensemble_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"is no ensemble: its grmlight\.json cannot be read"):
        EnsembleModel.from_pretrained(tmp_path)
    tiny_ensemble("models").save_pretrained(tmp_path)
    (tmp_path / "member-1/config.json").unlink()
    with pytest.raises(ValueError, match=r"member-1 is no reward model"):
        EnsembleModel.from_pretrained(tmp_path)
    entries = json.loads((tmp_path / "grmlight.json").read_text())
    entries["ensemble"]["aggregation"] = "median"
    (tmp_path / "grmlight.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="aggregation must be one of mean, wco, uwo, got 'median'"):
        EnsembleModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "size must be at least 2"),
        ({"members": "minds"}, "members must be 'models', 'adapters' or 'heads'"),
        ({"aggregation": "max"}, "aggregation must be one of mean, wco, uwo"),
        ({"variance_weight": -0.1}, "variance_weight must be finite and at least 0"),
        ({"reference_pairs": 0}, "reference_pairs must be at least 1"),
    ],
)
def test_what_no_ensemble_can_be_is_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        EnsembleConfig(**options)


@pytest.mark.parametrize("members", ["adapters", "heads"])
def test_a_classifier_without_an_lm_head_can_be_shared(members, byte_tokenizer, tmp_path):
    twins.openrlhf(tmp_path / "rm", byte_tokenizer)
    lora = LoraOptions(r=2) if members == "adapters" else None
    trunk = load_reward_model(tmp_path / "rm", lora=lora)
    batch = pack_groups([[twins.SEQUENCES[0], twins.SEQUENCES[1]], [twins.SEQUENCES[2]]])
    expected = trunk.eval()(batch).rewards_N
    model = EnsembleModel([trunk], EnsembleConfig(3, members))
    wake_adapters(model)
    found = Scorer(model).outputs(batch).rewards_KN
    if members == "heads":
        torch.testing.assert_close(found[0], expected)
    assert (found[0] - found[1]).abs().min() > 1e-4
    model.save_pretrained(tmp_path / "ensemble")
    loaded = Scorer(EnsembleModel.from_pretrained(tmp_path / "ensemble"))
    torch.testing.assert_close(loaded.outputs(batch).rewards_KN, found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"head": HeadConfig(width=8)}, "head.summary.0.bias"),
        ({"head": HeadConfig("linear")}, "head.summary.0.bias"),
        ({"config": {"num_hidden_layers": 1}}, "backbone.model.layers.1"),
        ({"architecture": "gemma"}, "architecture"),
    ],
)
def test_unlike_members_are_one_line(other, named, tmp_path):
    trunks = [tiny_reward_model(), tiny_reward_model(**other)]
    with pytest.raises(ValueError, match=rf"members 0 and 1 are unlike, .*{named}") as caught:
        EnsembleModel(trunks, EnsembleConfig(2, "models"))
    assert "\n" not in str(caught.value)
    if "head" in other:
        tiny_ensemble("models", size=2).save_pretrained(tmp_path / "ensemble")
        trunks[1].save_pretrained(tmp_path / "ensemble/member-1")
        with pytest.raises(ValueError, match="members 0 and 1 are unlike"):
            load_reward_model(tmp_path / "ensemble")


def test_adapters_need_adapters():
    with pytest.raises(ValueError, match=r"set backbone\.lora"):
        EnsembleModel.build(tiny_backbone("llama"), HeadConfig(), EnsembleConfig(2, "adapters"))


@pytest.mark.parametrize("members", KINDS)
def test_the_memory_estimate_counts_what_was_built(members):
    model = tiny_ensemble(members)
    found = training_memory(model.backbone_config, model.config)
    backbones = [p for name, p in model.named_parameters() if ".backbone." in name]
    assert found.trainable == sum(p.numel() for p in backbones if p.requires_grad)
    adapters = found.trainable if members == "adapters" else 0
    assert found.parameters + adapters == sum(p.numel() for p in backbones)
