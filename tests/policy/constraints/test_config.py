"""What the shipped configuration is, and is not; that it parses is tests/test_configs.py's."""

from pathlib import Path

import yaml

from grmlight.policy.constraints import Constraints
from grmlight.policy.constraints.multiplier import Descent
from grmlight.policy.constraints.saturation import Patience
from grmlight.policy.online.mixing import KL

CONFIG = Path(__file__).parents[3] / "configs" / "ppo-constrained.yaml"


def read():
    document = yaml.safe_load(CONFIG.read_text())
    return document, document["model"]["init_args"]


def test_defect_the_shipped_command_runs_nelder_mead():
    """The README's command of the release loads a configuration in which the search is on."""
    document, _ = read()
    assert [each["class_path"] for each in document["trainer"]["callbacks"]] == [
        "grmlight.policy.constraints.ConstraintCurves"
    ]


def test_a_saturated_multiplier_can_be_told_of_in_the_run():
    """With rewards that never come near: the multiplier saturates, and its patience ends before the run does."""
    document, arguments = read()
    given, data = arguments["mixing"]["init_args"], document["data"]["init_args"]
    updates = data["prompts"] // data["prompts_per_step"] * document["trainer"]["max_epochs"]
    patience = Patience(**given["patience"])
    mixing = Constraints({"a": 0.0}, given["variant"], None, Descent(**given["multipliers"]), patience)
    said = []
    watch = mixing._saturations["a"].watch
    mixing._saturations["a"].watch = lambda *found: said.append(watch(*found))
    for _ in range(updates):
        mixing.update({"a": -8.0, KL: 0.0})
    assert any(said)


def test_defect_the_configuration_s_thresholds_are_others():
    """There is one place for them, the file that proxy-points wrote, and each reward of the run has one there."""
    _, arguments = read()
    given = arguments["mixing"]["init_args"]
    assert given["thresholds"].startswith("package:")
    names = [reward.rpartition(".")[2] for reward in arguments["rewards"]]
    mixing = Constraints(given["thresholds"], given["variant"])
    mixing.setup([*names, KL])
    assert set(mixing.thresholds) == set(names)
