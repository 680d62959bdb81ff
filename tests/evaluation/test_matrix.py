"""The matrix of the paper's tables: every line it prints is parsed by the program itself, and one is run."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from grmlight import cli
from grmlight.evaluation.matrix import BLOCKS, METHODS, launch_lines
from grmlight.evaluation.published import COLUMNS, setting_of
from grmlight.evaluation.published_recipe import differences

REPOSITORY = Path(__file__).parents[2]
LINES = [line for line in launch_lines().splitlines() if line and not line.startswith("#")]
FITS = [line for line in LINES if " fit " in line]
PAPERS = {"gemma-2b-it": "gemma-2b-it", "mistral-7b-instruct": "Mistral-7B-Instruct-v0.2"}


def place(line):
    """The folder of a run's line: block, perhaps size, and method."""
    return line.split("--trainer.logger.name ")[1].split("/")


class ParserAlone(cli.CommandLine):
    """The program's command line, stopped before anything is made of what it parsed."""

    last: "ParserAlone"

    def instantiate_classes(self):
        ParserAlone.last = self

    def _run_subcommand(self, subcommand):
        pass


@pytest.fixture(scope="module")
def parser():
    """The parser of `grmlight`, as `fit` builds it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "CommandLine", ParserAlone)
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", ["grmlight", "fit", "--config", "configs/grm.yaml"])
        cli.run_trainer(sys.argv[1:])
        return ParserAlone.last.parser


def parsed(parser, line, monkeypatch):
    """What a line's arguments come to, as the run's config.yaml has it."""
    monkeypatch.chdir(REPOSITORY)
    arguments = shlex.split(line)
    arguments = arguments[arguments.index("fit") :]
    config = parser.parse_args(arguments)["fit"]
    return yaml.safe_load(ParserAlone.last._parser("fit").dump(config, skip_none=False))


@pytest.mark.parametrize("line", FITS, ids=lambda line: "/".join(place(line)))
def test_every_fit_is_parsed_and_is_the_method_that_it_says(line, parser, monkeypatch):
    config = parsed(parser, line, monkeypatch)
    block, *size, method = place(line)
    assert config["trainer"]["logger"]["init_args"]["save_dir"] == "runs/paper"
    assert config["trainer"]["logger"]["init_args"]["name"] == "/".join(place(line))
    if block == "world":
        assert config["data"]["class_path"] == "grmlight.lab.WorldData"
        config["data"]["init_args"]["train"] = "world"
    setting = setting_of(config)
    assert setting.method == method.removesuffix("_mlp").removesuffix("_linear")
    linear = {"baseline", "margin", "label_smoothing", "ensemble_mean", "ensemble_min", "grm_sft_linear"}
    assert setting.head == ("linear" if method in linear else "mlp")
    assert setting.flip == 0
    if block in PAPERS:
        assert differences("Table 1", config) == []
        assert (setting.base, setting.data) == (PAPERS[block], *size)
        check_lora_recipe(config, method)
    if block == "llama3-8b-full":
        assert (setting.base, setting.data) == ("Meta-Llama-3-8B-Instruct", "preference_700K")
        assert differences("Table 5", config) == []
        check_full_recipe(config)


def check_lora_recipe(config, method):
    """GRM (arXiv 2406.10216), its defaults for LoRA runs."""
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    lora = model["backbone"]["lora"]
    assert lora is None if method == "frozen" else (lora["r"], lora["alpha"], lora["dropout"]) == (32, 64, 0.05)
    assert model["optimizer"]["init_args"]["lr"] == 1e-5
    assert (model["schedule"], model["warmup_ratio"]) == ("cosine", 0.03)
    assert (trainer["gradient_clip_val"], trainer["max_epochs"]) == (5.0, 2)
    assert (data["prepare"]["max_length"], data["pairs_per_step"]) == (1024, 24)
    assert data["val"] == "llm-blender/Unified-Feedback@all:val"
    assert model["label_smoothing"] == (0.1 if method == "label_smoothing" else 0.0)
    for callback in trainer["callbacks"] or []:
        assert (callback["init_args"]["weight"], callback["init_args"]["beta"]) == (0.01, 0.1)


def check_full_recipe(config):
    """The same for full-parameter runs."""
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert model["backbone"]["lora"] is None
    assert model["optimizer"]["init_args"]["lr"] == 5e-6
    assert (data["prepare"]["max_length"], data["pairs_per_step"]) == (3000, 256)
    assert config["trainer"]["max_epochs"] == 1


def test_every_method_and_block_has_its_lines_once():
    places = ["/".join(place(line)) for line in FITS]
    assert len(set(places)) == len(places) == sum(len(block.methods) for block in BLOCKS)
    assert {each.rpartition("/")[2] for each in places} == METHODS.keys()


def test_every_block_is_evaluated_on_the_columns_of_its_tables():
    tables = {"gemma-2b-it": {*COLUMNS["preference"], "rewardbench"}, "llama3-8b-full": {"rewardbench"}}
    tables["mistral-7b-instruct"] = tables["gemma-2b-it"]
    for block in BLOCKS:
        benchmarks = [line.partition("--benchmarks ")[2].removesuffix("; done") for line in block.lines()]
        asked = {name for each in benchmarks for name in each.split(",") if name}
        assert asked == tables.get(block.name.partition("/")[0], set()), block.name


@pytest.mark.parametrize("line", [line for line in LINES if " fit " not in line])
def test_the_other_lines_are_parsed_too(line, tmp_path, monkeypatch):
    """Up to the run that is not there: its folder is what the message names."""
    loop = line.startswith("for run in ")
    runs = line.removeprefix("for run in ").split(";")[0] if loop else line.split()[-1]
    command = line.partition("; do ")[2].removesuffix("; done").replace('"$run"', runs) if loop else line
    program, name, *arguments = shlex.split(command)
    assert program == "grmlight"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main([name, *arguments])
    assert f"grmlight {name}: {runs}" in str(end.value)


@pytest.mark.slow
def test_a_line_runs_on_the_embedded_world_and_is_compared(tmp_path):
    (line,) = [line for line in FITS if place(line) == ["world", "grm_sft"]]
    program, *arguments = shlex.split(line)
    assert program == "grmlight"
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    small = ["--data.init_args.pairs=48", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    run = "runs/paper/world/grm_sft/version_0"
    for given in ([*arguments, *small], ["compare", f"one={run}", f"two={run}", "--json", "table.json"]):
        done = subprocess.run(
            [sys.executable, "-m", "grmlight", *given],
            cwd=tmp_path,
            env=os.environ | {"GRMLIGHT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / run / "results.json").read_text())
    (table,) = json.loads((tmp_path / "table.json").read_text())["tables"]
    assert table["columns"] == list(results) == ["id", "ood_topic", "ood_template", "ood_all"]
    assert {each["costs"]["train_seconds"] > 0 for each in table["rows"]} == {True}
    for name, cell in table["rows"][1]["cells"].items():
        assert cell["accuracy"] == results[name]["accuracy"]
        assert [cell["difference"][each] for each in ("value", "low", "high", "rows")] == [0, 0, 0, 500]
