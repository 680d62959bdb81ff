"""Every shipped configuration: its own command parses, and what was parsed can be dumped and parsed again."""

import itertools
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest
import yaml

from grmlight import cli

REPOSITORY = Path(__file__).parent.parent
CONFIGS = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (REPOSITORY / "configs").rglob("*.yaml")
    # Not ours to parse: tests/test_convert.py looks at it.
    if path.parent.name != "serving"
)
POLICIES = ("sft", "dpo", "rpo", "ipo", "slic", "ppo", "rloo", "grpo", "ppo-constrained")
ROOTS = ["configs/grm.yaml", *(f"configs/{name}.yaml" for name in POLICIES)]
"""Configurations that need no other one before them."""
PARSED = {}
RECIPES = [f"configs/{name}.yaml" for name in ("gemma-2b-it", "mistral-7b-instruct")]


class ParserAlone(cli.CommandLine):
    """The program's command line, stopped before anything is made of what it parsed."""

    last: "ParserAlone"

    def instantiate_classes(self):
        ParserAlone.last = self

    def _run_subcommand(self, subcommand):
        pass


@pytest.fixture
def parse(monkeypatch):
    """Parse the arguments of `grmlight fit`, offline; the parser and the configuration."""

    def refuse(*arguments):
        pytest.fail(f"parsing a configuration wants the network: {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(cli, "CommandLine", ParserAlone)
    monkeypatch.chdir(REPOSITORY)

    def run(*arguments):
        if arguments not in PARSED:
            monkeypatch.setattr(sys, "argv", ["grmlight", "fit", *arguments])
            cli.run_trainer(sys.argv[1:])
            PARSED[arguments] = ParserAlone.last._parser("fit"), ParserAlone.last.config["fit"]
        return PARSED[arguments]

    return run


def header(path):
    """The comment that heads a file, with its continued lines joined."""
    lines = []
    for line in (REPOSITORY / path).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines).replace("\\\n", " ")


def header_commands(path):
    """The arguments after each `grmlight fit` in a file's header."""
    return [shlex.split(found) for found in re.findall(r"^.*\bgrmlight fit (.*)$", header(path), re.MULTILINE)]


def command(path):
    """The arguments after the first one."""
    found = header_commands(path)
    assert found, f"{path}: no `grmlight fit` command heads the file"
    return found[0]


@pytest.mark.parametrize("path", CONFIGS)
def test_a_command_that_names_the_file_heads_it(path):
    arguments = command(path)
    named = [after for before, after in itertools.pairwise(arguments) if before == "--config"]
    assert path in named
    assert {"trainer", "model", "data"} <= yaml.safe_load((REPOSITORY / named[0]).read_text()).keys()
    assert path not in ROOTS or named == [path]
    assert all((REPOSITORY / each).is_file() for each in named)


@pytest.mark.parametrize("path", CONFIGS)
def test_a_file_is_parsed_dumped_and_parsed_again(path, parse, tmp_path):
    parser, config = parse(*command(path))
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(parser.dump(config))
    parser, again = parse("--config", str(dumped))
    assert yaml.safe_load(parser.dump(again)) == yaml.safe_load(dumped.read_text())


@pytest.mark.parametrize("path", CONFIGS)
def test_every_value_of_a_file_arrives(path, parse):
    """Nothing that a file says is lost or changed on the way, where a last file has the last word."""
    parser, config = parse(*command(path))
    parsed = yaml.safe_load(parser.dump(config, skip_none=False))
    text = yaml.safe_load((REPOSITORY / path).read_text())
    for key, value in leaves(text):
        overridden = [argument for argument in command(path) if argument == "--" + ".".join(map(str, key))]
        if not overridden and last_config(path) == path:
            assert dig(parsed, key) == value, ".".join(map(str, key))


def last_config(path):
    arguments = command(path)
    return [after for before, after in itertools.pairwise(arguments) if before == "--config"][-1]


def leaves(value, key=()):
    """All (key, value) whose value is no mapping; lists by index, lists that append (`name+`) from their end."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*key, name))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        appended = str(key[-1]).endswith("+")
        for index, inner in enumerate(value):
            place = (*key[:-1], str(key[-1]).rstrip("+"))
            yield from leaves(inner, (*place, index - len(value) if appended else index))
    else:
        yield key, value


def dig(value, key):
    for name in key:
        value = value[name]
    return value


@pytest.mark.parametrize("path", ROOTS)
def test_every_key_of_a_root_has_a_comment(path):
    lines = (REPOSITORY / path).read_text(encoding="utf-8").splitlines()
    in_loggers = False
    for number, line in enumerate(lines):
        key = re.fullmatch(r"(?P<indent> *)(- )?(?P<name>[\w+]+): +(?P<value>[^#\s].*)", line)
        if re.fullmatch(r" {2}\w+:.*", line):
            in_loggers = line == "  logger:"  # one comment says what both loggers are
        if key and key["name"] != "class_path" and not in_loggers:
            assert "#" in line or lines[number - 1].strip().startswith("#"), f"line {number + 1}: {line.strip()}"
    assert lines[lines.index("  logger:") - 1].strip().startswith("#")


def test_append_files_leave_the_rest_of_grm_yaml(parse):
    _, config = parse(*command("configs/loggers/wandb.yaml"))
    kinds = [logger.class_path.rpartition(".")[2] for logger in config.trainer.logger]
    assert kinds == ["CSVLogger", "TensorBoardLogger", "WandbLogger"]
    _, config = parse(*command("configs/regularizers/dpo.yaml"))
    assert [each.class_path for each in config.trainer.callbacks] == ["grmlight.regularizers.DirectPreference"]
    assert config.data.init_args.pairs == 400


@pytest.mark.parametrize("path", [path for path in CONFIGS if "baselines" in path])
def test_no_baseline_keeps_the_text_generation_regularizer(path, parse):
    _, config = parse(*command(path))
    assert not any("TextGeneration" in each.class_path for each in config.trainer.callbacks or [])


def commands(page):
    """The arguments of every `grmlight fit` of a page."""
    text = (REPOSITORY / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(found) for found in re.findall(r"^grmlight fit (.*)$", text, re.MULTILINE)]


def test_the_page_of_the_baselines_shows_commands_that_keep_the_head(parse):
    found = [parse(*arguments)[1] for arguments in commands("docs/baselines.md")]
    assert len(found) == 3
    for config in found:
        assert config.trainer.callbacks == []
        assert (config.model.init_args.head.kind, config.model.init_args.head.width) == ("mlp", 1024)
    margin, noise, frozen = found
    assert margin.model.init_args.use_margin
    assert (noise.data.init_args.prepare.flip, noise.model.init_args.backbone.lora.r) == (0.25, 32)
    assert frozen.model.init_args.backbone.frozen
    assert frozen.model.init_args.backbone.lora is None


@pytest.mark.parametrize("path", RECIPES)
def test_the_lora_recipes_are_the_papers(path, parse):
    """GRM (arXiv 2406.10216), its defaults for LoRA runs."""
    _, config = parse(*command(path))
    model, data, trainer = config.model.init_args, config.data.init_args, config.trainer
    lora = model.backbone.lora
    assert (lora.r, lora.alpha, lora.dropout) == (32, 64, 0.05)
    assert list(lora.targets) == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert model.optimizer.init_args.lr == 1e-5
    assert model.optimizer.init_args.weight_decay == 0
    assert (model.schedule, model.warmup_ratio) == ("cosine", 0.03)
    assert (model.head.kind, model.head.layers, model.head.width, model.head.dropout) == ("mlp", 1, 1024, 0.1)
    assert (trainer.gradient_clip_val, trainer.max_epochs, trainer.precision) == (5.0, 2, "bf16-mixed")
    assert (data.prepare.max_length, data.pairs_per_step) == (1024, 24)
    assert "Unified-Feedback" in data.train
    (regularizer,) = trainer.callbacks
    assert regularizer.class_path == "grmlight.regularizers.TextGeneration"
    arguments = regularizer.init_args
    assert (arguments.weight, arguments.form, arguments.beta, arguments.mixing) == (0.01, "log_sigmoid", 0.1, "convex")


def test_the_full_recipe_is_table_5s(parse):
    _, config = parse(*command("configs/llama3-8b-full.yaml"))
    model, data = config.model.init_args, config.data.init_args
    assert model.backbone.lora is None
    assert model.optimizer.init_args.lr == 5e-6
    assert (data.prepare.max_length, data.pairs_per_step, config.trainer.max_epochs) == (3000, 256, 1)
    assert "preference_700K" in data.train
    assert config.trainer.strategy.init_args.data_parallel_size == 8


def test_the_policy_recipe_is_the_rpo_papers(parse):
    """Liu et al. 2024, table 3 and its configuration: the beta series."""
    _, config = parse(*command("configs/policies/zephyr-7b.yaml"))
    model, data, trainer = config.model.init_args, config.data.init_args, config.trainer
    assert (model.objective.kind, model.objective.beta, model.objective.anchor) == ("rpo", 0.01, "paper")
    assert (model.optimizer.init_args.lr, model.schedule, model.warmup_ratio) == (5e-7, "cosine", 0.1)
    assert (data.pairs_per_step, data.prepare.max_length, trainer.max_epochs) == (128, 1024, 1)


@pytest.mark.parametrize("kind", ["sft", "dpo", "ipo", "slic"])
def test_the_policy_recipe_goes_with_every_objective(kind, parse):
    overlay = ["--config", "configs/policies/zephyr-7b.yaml", "--config", "configs/fsdp.yaml"]
    _, config = parse("--config", f"configs/{kind}.yaml", *overlay)
    assert config.model.init_args.objective.kind == kind
    assert config.model.init_args.backbone.name == "HuggingFaceH4/mistral-7b-sft-beta"


def test_the_search_for_thresholds_begins_with_none(parse):
    """Beside the first file's callbacks, without its thresholds, and with the rest of its constraints."""
    _, config = parse(*command("configs/policies/threshold-search.yaml"))
    kinds = [each.class_path.rpartition(".")[2] for each in config.trainer.callbacks]
    assert kinds == ["ConstraintCurves", "ThresholdSearch"]
    mixing = config.model.init_args.mixing.init_args
    assert (mixing.variant, mixing.thresholds) == ("xi", None)
    assert (mixing.multipliers.lr, mixing.patience.updates) == (0.1, 12)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_s_header_ends_with_the_command_for_a_real_model(name, parse):
    _, config = parse(*header_commands(f"configs/{name}.yaml")[-1])
    assert not config.model.init_args.backbone.name.startswith("package:")
    assert "lab" not in config.data.class_path


@pytest.mark.parametrize(("stride", "words"), [(2, "400K"), (20, "40K"), (100, "8K")])
def test_the_recipes_name_the_strides(stride, words):
    for path in RECIPES:
        assert re.search(rf"\b{stride}\b[^.;]*{words}", header(path)), path
