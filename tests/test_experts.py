"""ExpertsModule in a Trainer: what trains when, what is frozen, how the router is measured, and what is refused."""

import dataclasses
import json
import sys
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from grmlight import Checkpoints, ExpertsModule, PairDataModule, PrepareOptions, RewardModule
from grmlight.data import GroupLoader
from grmlight.data.labels import GroupLabels
from grmlight.evaluation.run_report import RunReport
from grmlight.export import SaveModel, export, save_model
from grmlight.models import ExpertsConfig, ExpertsModel, HeadConfig, Scorer, load_reward_model
from grmlight.regularizers import Regularizer, ScoreL2, TextGeneration
from grmlight.scoring import score
from grmlight.training.phases import Phase, Phases
from tests.test_module import Kept
from tests.tiny_models import tiny_backbone

TASKS = {"chat": ["good", "big"], "code": ["bad"]}
PHASES = Phases(Phase(steps=40), Phase(steps=15), Phase(steps=40))


def rows(count, seed, unseen=0):
    """Chats want good answers, code wants bad ones: what a task likes, the other does not."""
    draw = np.random.default_rng(seed)
    made = []
    for index in range(count):
        task = ("chat", "code")[index % 2]
        words = [f"so {word} {draw.integers(50)}" for word in (("good", "bad") if task == "chat" else ("bad", "good"))]
        row = {"prompt": f"{task} {draw.integers(90)}?", "chosen": words[0], "rejected": words[1], "category": task}
        if index % 3 == 0:
            row["capability"] = TASKS[task][index // 6 % len(TASKS[task])]
        made.append(row | ({"category": "poem"} if index < unseen else {}))
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory, byte_tokenizer):
    folder = tmp_path_factory.mktemp("data")
    for name, count, unseen in (("train", 180, 0), ("val", 60, 0), ("odd", 20, 5)):
        lines = [json.dumps(row) for row in rows(count, len(name), unseen)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))

    def make(**options):
        train, val, odd = (str(folder / f"{name}.jsonl") for name in ("train", "val", "odd"))
        files = {"train": train, "val": {"val": val, "odd": odd}}
        return PairDataModule(**files | {"tokenizer": str(byte_tokenizer), "pairs_per_step": 12} | options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRMLIGHT_CACHE", str(folder / "cache"))
        yield make


def experts_module(lr=1e-2, phases=PHASES, tasks=TASKS, backbone=None, **options):
    backbone = backbone or tiny_backbone("llama", lora=True, config={"vocab_size": 320})
    adamw = {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.1)}
    return ExpertsModule(backbone, tasks, phases=phases, head=HeadConfig(width=16, dropout=0.0), **adamw | options)


def trainer(*callbacks, **options):
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": Kept(),
        "callbacks": list(callbacks),
        "log_every_n_steps": 7,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": any(isinstance(each, Checkpoints) for each in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**defaults | options)


class Watch(L.Callback):
    """Keeps the weights, the optimizer's steps and the batches' rows at the end of each step."""

    def __init__(self):
        self.weights, self.rows, self.training = [], [], []

    def on_train_start(self, trainer, pl_module):
        self.weights.append(self._copy(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append(self._copy(pl_module))
        self.rows.append(set(batch.row_C.tolist()))
        self.training.append(pl_module.model.training)
        self.states = {name: len(trainer.optimizers[0].state[each]) for name, each in _learning(pl_module)}

    def _copy(self, pl_module):
        return {name: each.detach().clone() for name, each in pl_module.model.state_dict().items()}


def _learning(module):
    return [(name, each) for name, each in module.model.named_parameters() if each.requires_grad]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A whole run: its module, trainer, watch, data and folder."""
    folder, watch = tmp_path_factory.mktemp("run"), Watch()
    module, pairs = experts_module(), data()
    checkpoints = Checkpoints(folder / "checkpoints", every_n_train_steps=1000, save_last=True)
    made = trainer(watch, checkpoints, val_check_interval=20)
    made.fit(module, pairs)
    return module, made, watch, pairs, folder


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_frozen_tensors_are_bit_identical_after_the_phases_that_freeze_them(trained):
    """With weight decay and Adam's momentum, which move what has a gradient of zero."""
    module, _, watch, *_ = trained
    course, model = module.course, module.model
    for name in ("task", "experts", "mixture"):
        before, after = watch.weights[course.start(name)], watch.weights[course.end(name)]
        learning = set(model.learning(name))
        assert changed(before, after) == learning
        # The last step, too: nothing moves on by momentum.
        assert changed(watch.weights[course.end(name) - 1], after) <= learning
    assert course.steps == len(watch.rows) == 95


def test_each_phase_has_pairs_of_its_own(trained):
    module, _, watch, pairs, _ = trained
    course, store = module.course, pairs.prepared["train"].store
    labeled = {row["row"] for row in store.rows() if (row["row"] - 1) % 3 == 0}
    phases = [leg.name for leg in course.legs]
    used = {name: set.union(*watch.rows[course.start(name) : course.end(name)]) for name in phases}
    assert used["experts"] == labeled
    assert not used["task"] & (used["mixture"] | labeled)
    assert used["task"] | used["mixture"] | labeled == {row["row"] for row in store.rows()}
    assert len(used["task"]) == round(0.6 * 120)
    assert all(watch.training), "the model is back in training mode after each evaluation"


def test_experts_begin_as_their_task(trained):
    """The first step of the second phase begins with copies of the task's heads."""
    module, _, watch, *_ = trained
    start = module.course.start("experts")
    before, after = watch.weights[start], watch.weights[start + 1]
    for expert, task in enumerate([0, 0, 1]):
        for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
            begun = before[f"head.task.{task}.summary.{name}"]
            moved = after[f"head.experts.{expert}.summary.{name}"]
            assert (begun - moved).abs().max() <= 1.1e-2 * module.warmup_ratio * 40, "one step from the task's head"
            assert not torch.equal(begun, before[f"head.experts.{expert}.summary.{name}"])


def test_logged_terms_are_those_of_the_phase(trained):
    module, made, *_ = trained
    logged = {}
    for step in made.logger.steps:
        logged.setdefault("train/router" in step, []).append(step)
    # A line every 7 steps, and one where a phase ends.
    assert len(logged[True]) == 6
    assert len(logged[False]) == 10
    for step in logged[True]:
        assert step["train/loss"] == pytest.approx(step["train/preference"] + step["train/router"], rel=1e-5)


def test_better_answers_have_higher_rewards_in_training_and_evaluation(trained):
    """The release trained one way and evaluated the other. And the router is the trained one."""
    _, made, *_ = trained
    figures = made.callback_metrics
    assert figures["train/accuracy"] > 0.95
    assert figures["val/accuracy"] > 0.95
    assert figures["val/router_error"] == 0.0
    assert figures["val/unseen_categories"] == 0
    assert figures["val/odd/unseen_categories"] == 5
    assert figures["val/odd/pairs"] == 20, "no row is dropped"


def test_the_router_learns_by_cross_entropy_on_its_logits(data):
    """The release applied a softmax twice."""
    module, pairs = experts_module(), data()
    made = trainer(log_every_n_steps=1, max_steps=1)
    made.fit(module, pairs)
    first = experts_module()
    first.trainer = made
    model = first._make_model().train()
    batch = next(iter(pairs.train_dataloader()))
    logits = model(batch).route_logits_GT
    expected = F.cross_entropy(logits.double(), batch.task_G).item()
    assert made.logger.steps[0]["train/router"] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def by_label(trained):
    """Accuracy of the trained experts when groups are sent where labels say."""
    module, _, _, pairs, _ = trained
    prepared, labels = pairs.prepared["val"], pairs.labels["val"]

    def accuracy(task_G):
        model = module.model
        router, model.router = model.router, None
        given = GroupLabels(task_G, labels.capability_G, {})
        right = []
        for batch in GroupLoader(prepared.store, 60, labels=given):
            rewards_N = Scorer(model).score(batch)
            right += (rewards_N[batch.better_C] > rewards_N[batch.worse_C]).tolist()
        model.router = router
        return sum(right) / len(right)

    return accuracy, labels.task_G


def test_accuracy_falls_with_the_router_error_that_is_injected(by_label):
    accuracy, task_G = by_label
    draw, found = np.random.default_rng(0), {}
    for rate in (0.0, 0.1, 0.3, 1.0):
        wrong_G = np.zeros(len(task_G), dtype=bool)
        wrong_G[draw.permutation(len(task_G))[: round(rate * len(task_G))]] = True
        found[rate] = accuracy(np.where(wrong_G, 1 - task_G, task_G))
    assert found[0.0] > 0.95
    for rate in (0.1, 0.3, 1.0):
        assert found[rate] == pytest.approx(found[0.0] - rate * (2 * found[0.0] - 1), abs=0.08)


def test_given_categories_route_without_a_router(data):
    """And they decide: what tasks want contradicts itself, so crossed categories give the worse answer."""
    module, pairs = experts_module(routing="given"), data()
    pairs.val = pairs.val["val"]
    trainer().fit(module, pairs)
    assert module.model.router is None
    prepared = pairs.prepared["train"].store
    batch = next(iter(GroupLoader(prepared, 180, labels=pairs.labels["train"])))
    crossed = dataclasses.replace(batch, task_G=1 - batch.task_G)
    right = []
    for each in (batch, crossed):
        rewards_N = Scorer(module.model).score(each)
        right.append((rewards_N[each.better_C] > rewards_N[each.worse_C]).float().mean().item())
    assert right[0] > 0.95
    assert right[1] < 0.2


def test_a_run_leaves_a_model_that_scores_and_exports_as_it_did(trained, data, tmp_path):
    module, _, _, pairs, folder = trained
    source = pairs.val_sources["val"]
    expected = rewards_of(module.model, pairs)
    exported = export(folder / "checkpoints" / "last.ckpt", tmp_path / "model")
    assert exported.name.endswith(".ckpt")
    loaded = load_reward_model(tmp_path / "model")
    assert loaded.phase == "mixture"
    torch.testing.assert_close(rewards_of(loaded, pairs), expected, rtol=1e-6, atol=1e-6)
    export(tmp_path / "model", tmp_path / "copy")
    score(tmp_path / "copy", source, tmp_path / "scores.jsonl")
    scored = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(scored) == 60
    found = torch.tensor([[row["chosen"], row["rejected"]] for row in scored])
    torch.testing.assert_close(found, expected.view(-1, 2), rtol=1e-4, atol=1e-4)


def rewards_of(model, pairs):
    (batch,) = GroupLoader(pairs.prepared["val"].store, 60)
    return Scorer(model).score(batch)


def test_results_tell_the_routers_error(data, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    made = trainer(RunReport(), SaveModel(), logger=CSVLogger(tmp_path, name="", version=0), log_every_n_steps=1)
    made.fit(experts_module(phases=Phases(Phase(steps=2), Phase(steps=1), Phase(steps=1))), data())
    results = json.loads((tmp_path / "version_0" / "results.json").read_text())
    assert 0 <= results["val"]["router_error"] <= 1
    assert results["odd"]["unseen_categories"] == 5
    assert results["odd"]["pairs"] == 20
    assert type(load_reward_model(tmp_path / "version_0" / "model")).__name__ == "ExpertsModel"


def test_scoring_says_which_categories_the_router_never_saw(byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    backbone = tiny_backbone(lora=True, config={"vocab_size": 320})
    model = ExpertsModel(backbone, ExpertsConfig(TASKS), HeadConfig(width=8))
    save_model(model, tmp_path / "model", str(byte_tokenizer), PrepareOptions())
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(20, 0, unseen=5)))
    report = score(tmp_path / "model", str(tmp_path / "odd.jsonl"), tmp_path / "scores.jsonl")
    written = enumerate((tmp_path / "odd.jsonl").read_text().splitlines(), 1)
    poems = [number for number, line in written if json.loads(line)["category"] == "poem"]
    assert len(poems) == 5
    assert report["noted"]["unseen_category"] == poems
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 20


def test_a_stopped_phase_is_evaluated_as_what_it_is(data, tmp_path):
    """A checkpoint after the first phase is a task model, whoever loads it."""
    checkpoints = Checkpoints(tmp_path, every_n_train_steps=1000, save_last=True)
    module, pairs = experts_module(stop_after="task"), data()
    trainer(checkpoints).fit(module, pairs)
    assert module.model.phase == "task"
    assert module.global_step == 40
    validated = experts_module()
    again = trainer(Checkpoints(tmp_path, every_n_train_steps=1000))
    found = again.validate(validated, data(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert validated.model.phase == "task"
    assert found[0]["val/accuracy"] > 0.9
    torch.testing.assert_close(rewards_of(validated.model, pairs), rewards_of(module.model, pairs))
    export(tmp_path / "last.ckpt", tmp_path / "model")
    assert load_reward_model(tmp_path / "model").phase == "task"


class Named(Regularizer):
    def __init__(self):
        super().__init__(0.1, mixing="additive", name="router")


def test_mistakes_are_one_line_before_the_first_step(data, tmp_path, byte_tokenizer):
    def refused(message, module=None, *callbacks, pairs=None, **options):
        with pytest.raises(ValueError, match=message):
            trainer(*callbacks, **options).fit(module or experts_module(), pairs or data())

    refused("set it to 1, and the passes", max_epochs=2)
    refused("row 2 has category 'code', which is no task .chat.", experts_module(tasks={"chat": ["good", "big"]}))
    refused("row 1 has capability 'good', which is no capability", experts_module(tasks=TASKS | {"chat": ["big"]}))
    refused("no pair labeled for wit", experts_module(tasks=TASKS | {"code": ["bad", "wit"]}))
    refused("task 'poem' has no pair without a capability", experts_module(tasks=TASKS | {"poem": ["x"]}))
    refused("row 1 has category 'poem'", experts_module(routing="given"))
    refused("rewards alone, not chosen_logps", experts_module(), TextGeneration(0.1))
    refused("are named 'router'", experts_module(), Named())
    refused("set backbone.lora", experts_module(backbone=tiny_backbone("llama", config={"vocab_size": 320})))
    with pytest.raises(ValueError, match="stop_after must be"):
        experts_module(stop_after="mixture")
    with pytest.raises(ValueError, match="must be positive"):
        Phase(epochs=0)
    with pytest.raises(ValueError, match="task_share"):
        Phases(task_share=1.0)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_other_phases_and_other_models_do_not_resume(data, tmp_path):
    def keeping(**options):
        checkpoints = Checkpoints(tmp_path, every_n_train_steps=1, save_last=True)
        return trainer(checkpoints, log_every_n_steps=1, **options)

    keeping(max_steps=1).fit(experts_module(phases=Phases(Phase(steps=2), Phase(steps=1), Phase(steps=1))), data())
    resumed = {"ckpt_path": tmp_path / "last.ckpt"}
    with pytest.raises(ValueError, match=r"written with phases=.*this run has"):
        keeping().fit(experts_module(), data(), **resumed)
    lora = tiny_backbone("llama", lora=True, config={"vocab_size": 320})
    with pytest.raises(ValueError, match="of another model"):
        keeping().fit(RewardModule(lora), data(), **resumed)


def test_penalties_on_scores_join_every_phase(data):
    made = trainer(ScoreL2(0.5), log_every_n_steps=1)
    made.fit(experts_module(phases=Phases(Phase(steps=1), Phase(steps=1), Phase(steps=1))), data())
    for step in made.logger.steps:
        total = step["train/preference"] + 0.5 * step["train/score_l2"] + step.get("train/router", 0.0)
        assert step["train/loss"] == pytest.approx(total, rel=1e-5)
    assert len(made.logger.steps) == 3


def test_the_shipped_configuration_trains_on_the_embedded_world(tmp_path, monkeypatch, capsys):
    from grmlight import cli

    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    configs = Path(__file__).parent.parent / "configs"
    monkeypatch.chdir(tmp_path)
    phases = [f"--model.init_args.phases.{name}.steps=2" for name in ("task", "experts", "mixture")]
    trainer_options = ["--trainer.val_check_interval", "6", "--trainer.log_every_n_steps", "1"]
    shown = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    files = ["--config", str(configs / "grm.yaml"), "--config", str(configs / "dmoerm.yaml")]
    monkeypatch.setattr(sys, "argv", ["grmlight", "fit", *files, *phases, *trainer_options, *shown])
    cli.main()
    results = json.loads((tmp_path / "runs/grm/version_0/results.json").read_text())
    assert 0 <= results["id"]["router_error"] <= 1
    assert results["ood_topic"]["unseen_categories"] == 500
    assert "router_error" not in results["ood_topic"]
    assert "unseen categories 500" in capsys.readouterr().out
    assert load_reward_model(tmp_path / "runs/grm/version_0/model").phase == "mixture"
