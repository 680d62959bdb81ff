"""The arithmetic of multipliers and mixtures against torch, and each defect of the official code by its name.

The defects are those of ConstrainedRL4LMs at 11ac8fe, the release of Moskovitz et al. 2023.
"""

import json
import logging
import math

import pytest
import torch

from grmlight.policy.constraints.constraints import Constraints
from grmlight.policy.constraints.multiplier import Descent, Multiplier
from grmlight.policy.constraints.saturation import Patience
from grmlight.policy.online.mixing import KL, Minibatch

SQUASHES = {"at_least": torch.sigmoid, "at_most": torch.sigmoid, "equal": torch.tanh}


def batch(count=4, kl_coefficient=0.3):
    return Minibatch(torch.arange(count), {}, kl_coefficient)


def advantages(*names, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, generator=generator, dtype=torch.float64) for name in [*names, KL]}


@pytest.mark.parametrize("bound", SQUASHES)
@pytest.mark.parametrize("descent", [Descent(), Descent(0.7, 0.0, 1.5), Descent(0.2, 0.9, -2.0)])
def test_a_multiplier_moves_as_torch_s_sgd_moves_it(bound, descent):
    """The loss s (v - theta) written out, with v a number."""
    parameter = torch.tensor(descent.initial, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=descent.lr, momentum=descent.momentum)
    multiplier = Multiplier(bound, descent)
    for value in torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist():
        optimizer.zero_grad()
        slack = 0.4 - value if bound == "at_most" else value - 0.4
        (SQUASHES[bound](parameter) * slack).backward()
        optimizer.step()
        multiplier.update(value, 0.4)
        assert multiplier.value == pytest.approx(parameter.item(), rel=1e-12)
        assert multiplier.squashed == pytest.approx(float(SQUASHES[bound](parameter.detach())), rel=1e-12)


def test_multipliers_of_any_size_are_squashed():
    for bound, low in (("at_least", 0.0), ("equal", -1.0)):
        for value, expected in ((-1e6, low), (1e6, 1.0)):
            multiplier = Multiplier(bound, Descent(initial=value))
            assert (multiplier.squashed, multiplier.slope) == (expected, 0.0)


def test_the_step_grows_with_the_violation():
    """Which is why it is no Adam's: that moves a single number by its learning rate whatever the violation."""
    moves = []
    for violation in (0.01, 0.1, 1.0):
        multiplier = Multiplier("at_least", Descent())
        multiplier.update(-violation, 0.0)
        moves.append(multiplier.value)
    assert moves[1] / moves[0] == pytest.approx(10)
    assert moves[2] / moves[1] == pytest.approx(10)


def test_defaults_are_the_paper_s_and_each_multiplier_starts_at_zero():
    assert (Descent().lr, Descent().momentum, Descent().initial) == (0.1, 0.1, 0.0)
    assert Constraints({"a": 1.0}, "mu").multipliers["a"].squashed == 0.5
    assert Constraints({"a": 1.0}, "xi").multipliers["a"].squashed == 0.0


def set_squashed(mixer, **values):
    for name, s in values.items():
        mixer.multipliers[name].value = math.log(s / (1 - s)) if mixer.variant != "xi" else math.atanh(s)


@pytest.mark.parametrize("variant", ["mu", "xi"])
def test_the_mixture_of_mu_and_xi(variant):
    mixer, given = Constraints({"a": 1.0, "b": 2.0}, variant), advantages("a", "b")
    set_squashed(mixer, a=0.25, b=0.6)
    expected = (2 - 0.85) * given[KL] + 0.25 * given["a"] + 0.6 * given["b"]
    torch.testing.assert_close(mixer.mix(given, batch()), expected)


def test_the_mixture_of_xi_where_a_reward_is_held_down():
    """The task never weighs more than N: with the paper's N - sum s it would weigh up to 2 N."""
    mixer, given = Constraints({"a": 1.0, "b": 2.0}, "xi"), advantages("a", "b")
    set_squashed(mixer, a=-0.75, b=0.6)
    expected = (2 - 0.75 - 0.6) * given[KL] - 0.75 * given["a"] + 0.6 * given["b"]
    torch.testing.assert_close(mixer.mix(given, batch()), expected)


def test_the_mixture_of_all():
    mixer = Constraints({"a": 1.0, "b": 2.0}, "all", weights={"a": 0.5})
    given = advantages("a", "b")
    set_squashed(mixer, a=0.25, b=0.6)
    task = 0.5 * given["a"] + given["b"] + 0.3 * given[KL]
    torch.testing.assert_close(mixer.mix(given, batch()), (2 - 0.85) * task - 0.25 * given["a"] - 0.6 * given["b"])


def test_the_mixture_of_sat():
    mixer, given = Constraints({"a": 1.0, "b": 2.0}, "sat", weights={"a": 0.5}), advantages("a", "b")
    torch.testing.assert_close(mixer.mix(given, batch()), 0.5 * given["a"] + given["b"] + 0.3 * given[KL])
    shaped = mixer.shape({"a": torch.tensor([0.0, 1.0, 3.0]), "b": torch.tensor([2.5, 2.0, math.nan])})
    assert shaped["a"].tolist() == [-1.0, 0.0, -4.0]
    assert shaped["b"].tolist()[:2] == [-0.25, 0.0]
    assert shaped["b"].isnan().tolist() == [False, False, True]


def test_the_others_optimize_the_rewards_themselves():
    rewards = {"a": torch.tensor([0.0, 1.0])}
    for variant in ("mu", "xi", "all"):
        assert Constraints({"a": 1.0}, variant).shape(rewards)["a"] is rewards["a"]


def test_defect_thresholds_by_place():
    """The release's simplex is (METEOR, intent), its constraints (intent, METEOR). Here names decide, never places."""
    given, values = advantages("intent", "meteor"), {"meteor": 0.1, "intent": 0.9, KL: 0.0}
    ours = Constraints({"intent": 0.5, "meteor": 0.2}, "mu")
    swapped = Constraints({"meteor": 0.2, "intent": 0.5}, "mu")
    for mixer in (ours, swapped):
        mixer.setup(["meteor", KL, "intent"])
        for _ in range(20):
            mixer.update(values)
    assert ours.multipliers["meteor"].value > 0 > ours.multipliers["intent"].value
    torch.testing.assert_close(ours.mix(given, batch()), swapped.mix(dict(reversed(given.items())), batch()))


@pytest.mark.parametrize("variant", ["mu", "xi", "all"])
def test_defect_the_first_multiplier_is_skipped(variant):
    mixer = Constraints({"a": 1.0, "b": 1.0, "c": 1.0}, variant)
    mixer.update({"a": 0.0, "b": 0.0, "c": 0.0, KL: 0.0})
    values = [each.value for each in mixer.multipliers.values()]
    assert values[0] != 0
    assert values == [values[0]] * 3


def test_defect_multipliers_share_one_random_start():
    """Each is a number of its own, started at a documented one."""
    mixer = Constraints({"a": 1.0, "b": 1.0}, "mu")
    mixer.update({"a": 0.0, "b": 2.0, KL: 0.0})
    assert mixer.multipliers["a"].value == -mixer.multipliers["b"].value > 0


def test_defect_advantages_are_standardized_before_they_are_mixed():
    """A reward in units ten times as large pulls ten times as hard."""
    mixer, given = Constraints({"a": 1.0}, "mu"), advantages("a")
    mixer.multipliers["a"].value = 30.0
    torch.testing.assert_close(mixer.mix(given | {"a": 10 * given["a"]}, batch()), 10 * mixer.mix(given, batch()))


def test_defect_all_ppo_is_gone_and_sat_has_fixed_targets_without_weights():
    for variant in ("all", "sat"):
        Constraints({"anything": 3.0, "else": -7.0}, variant, weights={"anything": 2.0}).setup(["else", "anything", KL])
    shaped = Constraints({"a": 3.0}, "sat").shape({"a": torch.tensor([3.0])})
    assert float(shaped["a"]) == 0


def test_defect_the_figures_of_multipliers_are_nan():
    mixer = Constraints({"a": 1.0, "b": 1.0}, "xi")
    figures = mixer.update({"a": 0.5, "b": 2.0, KL: -0.1})
    assert set(figures) == {f"{name}_{what}" for name in "ab" for what in ("threshold", "multiplier", "squashed")}
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["a_multiplier"] == mixer.multipliers["a"].value


def test_a_reward_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="reward 'a' is nan"):
        Constraints({"a": 1.0}).update({"a": math.nan, KL: 0.0})


def test_names_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="thresholds for b, and the rewards are a"):
        Constraints({"a": 1.0, "b": 1.0}).setup(["a", KL])
    with pytest.raises(ValueError, match="no threshold for b"):
        Constraints({"a": 1.0}).setup(["a", "b", KL])
    with pytest.raises(ValueError, match="thresholds for kl"):
        Constraints({"a": 1.0, KL: 0.1}).setup(["a", KL])
    with pytest.raises(ValueError, match="weights for b"):
        Constraints({"a": 1.0}, "all", weights={"b": 1.0})
    with pytest.raises(ValueError, match="'xi' has no weights"):
        Constraints({"a": 1.0}, "xi", weights={"a": 1.0})
    with pytest.raises(ValueError, match="variant must be"):
        Constraints({"a": 1.0}, "nu")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("thresholds: {a: high}", "threshold of reward 'a' is 'high'"),
        ("thresholds: {a: .nan}", "threshold of reward 'a' is nan"),
        ("thresholds: {}", "there is no `thresholds`"),
        ("a: 1", "there is no `thresholds`"),
        ("- 1", "there is no `thresholds`"),
        ("thresholds: {a: 1", "cannot be read as YAML"),
    ],
)
def test_files_of_thresholds_that_are_none_are_named(tmp_path, content, reason):
    path = tmp_path / "thresholds.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason) as error:
        Constraints(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_says_what_writes_it(tmp_path):
    with pytest.raises(ValueError, match="no such file; write it with `grmlight proxy-points`"):
        Constraints(str(tmp_path / "none.yaml"))


def values_at(step):
    return {"a": math.sin(step), "b": 2.0 + 0.1 * step, KL: -0.1}


@pytest.mark.parametrize("variant", ["mu", "xi", "all", "sat"])
def test_it_goes_on_from_its_state(variant, caplog):
    """Multipliers, momentum, and what was warned of already."""

    def make():
        options = {"multipliers": Descent(lr=0.5), "patience": Patience(0.8, 7)}
        return Constraints({"a": 0.3, "b": 0.5}, variant, **options)

    with caplog.at_level(logging.WARNING):
        whole = make()
        figures = [whole.update(values_at(step)) for step in range(60)]
        told = [record.getMessage() for record in caplog.records]
        caplog.clear()
        stopped = make()
        for step in range(60):
            state = json.loads(json.dumps(stopped.state_dict()))
            stopped = make()
            stopped.load_state_dict(state)
            assert stopped.update(values_at(step)) == figures[step]
    assert [record.getMessage() for record in caplog.records] == told
    assert bool(told) == (variant != "sat")


def test_a_state_of_other_constraints_is_refused():
    mixer = Constraints({"a": 0.3, "b": 0.5})
    with pytest.raises(ValueError, match="has multipliers of a, the constraints are of a, b"):
        mixer.load_state_dict(Constraints({"a": 0.3}).state_dict())


@pytest.mark.parametrize(("variant", "value", "violated"), [("xi", 0.5, True), ("mu", 1.5, False), ("all", 1.5, True)])
def test_a_constraint_that_is_violated_at_the_end_is_named(variant, value, violated, caplog):
    mixer = Constraints({"a": 1.0, "b": 2.0}, variant)
    for turn in range(20):
        noise = 0.1 * (-1) ** turn
        mixer.update({"a": value + noise, "b": 2 + noise, KL: 0.0})
    again = Constraints({"a": 1.0, "b": 2.0}, variant)
    again.load_state_dict(json.loads(json.dumps(mixer.state_dict())))
    with caplog.at_level(logging.WARNING):
        again.finish()
    assert ("the constraint of reward 'a' is violated at the end of training: by 0.5" in caplog.text) == violated
    assert "'b'" not in caplog.text
