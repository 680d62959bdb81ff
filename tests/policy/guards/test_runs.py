"""Guards in runs on the embedded world: those that must fire do, the others do not, and nothing is lost by a resume."""

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from grmlight import OnlineModule, PolicyModule, RewardModule
from grmlight.evaluation.curves import read_curves
from grmlight.lab.prompts import WorldPrompts
from grmlight.policy.guards import KLBudget, LengthMonitor, ProxyGoldGap, RepetitionMonitor, SampleTable
from grmlight.policy.sampler import SamplingOptions
from grmlight.training.checkpoints import Checkpoints
from tests.policy.guards.world import GOLD, LM, ONCE, REALLY, SELDOM, measurement, run, weights

# Resumed runs keep their checkpoints elsewhere and have other guards, and Lightning says so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`"),
]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("GRMLIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


class Copies(Callback):
    """The weights after each step, before any guard acts."""

    def __init__(self):
        self.after = {}

    def on_train_start(self, trainer, pl_module):
        self.after[trainer.global_step] = weights(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after[trainer.global_step] = weights(pl_module)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(("be", "below")))


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory):
    folder, copies = tmp_path_factory.mktemp("rolled_back"), Copies()
    gap, kl = ProxyGoldGap(patience=1, action="rollback"), measurement(gold=ONCE)
    trainer, module = run(folder, copies, gap, kl, KLBudget(1000.0))
    return SimpleNamespace(folder=folder, copies=copies, gap=gap, kl=kl, trainer=trainer, module=module)


def test_the_weights_rolled_back_to_are_the_bests_bit_for_bit(rolled_back):
    points = {point.step: point for point in rolled_back.kl.points}
    best = rolled_back.gap.best["step"]
    assert best == max(points, key=lambda step: points[step].gold) == 4
    stopped = rolled_back.trainer.global_step
    assert stopped == 8
    assert points[stopped].proxy > points[best].proxy
    assert same(weights(rolled_back.module), rolled_back.copies.after[best])
    assert not same(weights(rolled_back.module), rolled_back.copies.after[stopped])


def test_and_so_is_the_optimizer(rolled_back):
    kept = torch.load(rolled_back.folder / "checkpoints" / "best-gold-4.ckpt", weights_only=True)
    state = rolled_back.trainer.optimizers[0].state_dict()["state"]
    for index, entries in kept["optimizer_states"][0]["state"].items():
        assert all(torch.equal(torch.as_tensor(state[index][name]), torch.as_tensor(entries[name])) for name in entries)
    assert kept["global_step"] == 4


def test_a_budget_that_is_not_exceeded_stops_nothing(rolled_back):
    assert files(rolled_back.folder) == ["below-budget-8.ckpt", "best-gold-4.ckpt"]


def test_the_end_is_told_with_steps_figures_and_file(tmp_path, capsys, caplog):
    with caplog.at_level("INFO"):
        trainer, _ = run(tmp_path, measurement(), ProxyGoldGap())
    said = [line for line in (caplog.text + capsys.readouterr().err).splitlines() if "ProxyGoldGap" in line]
    assert "proxy and gold have parted: since step 0 the proxy has changed by +" in said[0]
    assert str(tmp_path / "checkpoints" / "best-gold-0.ckpt") in said[0]
    # Parted at 8 too, which was not enough.
    assert trainer.global_step == 12


def test_without_rollback_the_weights_stay(tmp_path):
    copies = Copies()
    trainer, module = run(tmp_path, copies, measurement(gold=ONCE), ProxyGoldGap(patience=1))
    assert trainer.global_step == 8
    assert same(weights(module), copies.after[8])


@pytest.mark.parametrize(
    ("options", "rewards"),
    [
        ({}, {"gold": REALLY}),  # Both rise.
        ({}, {"proxy": SELDOM, "gold": SELDOM}),  # Both fall: no over-optimization.
        ({"errors": 50.0}, {"gold": GOLD}),  # The gold falls, by less than so many standard errors.
        ({"patience": 4}, {"gold": GOLD}),  # Not for long enough.
    ],
)
def test_a_gap_that_is_none_stops_nothing(options, rewards, tmp_path):
    trainer, _ = run(tmp_path, measurement(**rewards), ProxyGoldGap(**options), steps=12)
    assert trainer.global_step == 12


def test_the_last_checkpoint_within_the_budget_is_kept_and_named(tmp_path, capsys, caplog):
    copies, kl, budget = Copies(), measurement(), KLBudget(5.0)
    with caplog.at_level("INFO"):
        trainer, _ = run(tmp_path, copies, kl, budget)
    assert [point.kl <= 5 for point in kl.points] == [True, True, False]
    assert (trainer.global_step, files(tmp_path)) == (8, ["below-budget-4.ckpt"])
    kept = tmp_path / "checkpoints" / "below-budget-4.ckpt"
    assert f"its last checkpoint within the budget is {kept}" in caplog.text + capsys.readouterr().err
    found = torch.load(kept, weights_only=True)["state_dict"]
    assert all(torch.equal(found[name], copies.after[4][name]) for name in found)


def test_checkpoints_lie_where_the_logger_says_if_nobody_else_does(tmp_path):
    """As on the command line."""
    run(tmp_path, KLBudget(5.0), measurement(), beside=False)
    assert (tmp_path / "csv" / "version_0" / "checkpoints" / "below-budget-4.ckpt").exists()


def test_a_run_that_was_stopped_stays_so(tmp_path, capsys, caplog):
    run(tmp_path / "first", measurement(), KLBudget(5.0))
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    with caplog.at_level("INFO"):
        trainer, _ = run(tmp_path / "again", measurement(), KLBudget(5.0), resume=last)
    assert trainer.global_step == 8
    assert f"begin from {last.with_name('below-budget-4.ckpt')}" in caplog.text + capsys.readouterr().err


def test_a_run_goes_on_from_the_kept_checkpoint(tmp_path):
    """Which was written before anything else happened at that step."""
    whole, kl = measurement(), measurement()
    run(tmp_path / "whole", whole, steps=8)
    run(tmp_path / "cut", measurement(), KLBudget(5.0))
    run(tmp_path / "on", kl, steps=8, resume=tmp_path / "cut" / "checkpoints" / "below-budget-4.ckpt")
    assert kl.points == whole.points


def test_a_resumed_run_is_rolled_back_to_what_it_kept_before(tmp_path):
    """The best was before the cut, and the checkpoints of the rest are in another folder."""
    copies, gap = Copies(), ProxyGoldGap(patience=2, action="rollback")
    run(tmp_path / "cut", copies, measurement(gold=ONCE), ProxyGoldGap(patience=2), steps=8)
    resumed = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    trainer, module = run(tmp_path / "rest", measurement(gold=ONCE), gap, steps=24, resume=resumed)
    assert (trainer.global_step, gap.best["step"]) == (12, 4)
    assert same(weights(module), copies.after[4])


def all_guards():
    return [
        KLBudget(1000.0),
        ProxyGoldGap(errors=1.0, patience=9),
        LengthMonitor(max_growth=99, max_cut=1),
        RepetitionMonitor(min_distinct=0, max_repeat=1),
        SampleTable(prompts=2, every=2),
    ]


@pytest.mark.parametrize("cut", [6, 8])
def test_a_resumed_run_has_what_the_whole_one_has(cut, tmp_path):
    """Also where it was cut between two measurements."""
    whole, rest = all_guards(), all_guards()
    run(tmp_path / "whole", measurement(), *whole, steps=16, save_every=cut)
    run(tmp_path / "cut", measurement(), *all_guards(), steps=cut, save_every=2)
    (saved,) = (tmp_path / "cut" / "checkpoints").glob(f"*step={cut}.ckpt")
    run(tmp_path / "rest", measurement(), *rest, steps=16, resume=saved)
    for name in ("curve.jsonl", "samples.jsonl", "samples.md"):
        found, expected = (tmp_path / each / "csv" / "version_0" / name for each in ("rest", "whole"))
        assert found.read_text() == expected.read_text(), name
    for one, other in zip(rest, whole, strict=True):
        found, expected = one.state_dict(), other.state_dict()
        for state in (found, expected):
            # It lies elsewhere.
            state.get("kept", {}).pop("folder", None)
        assert found == expected
    assert whole[1].parted > 0


class Tables(CSVLogger):
    """A logger that has tables."""

    def __init__(self, folder):
        super().__init__(folder, name="csv", version=0)
        self.tables = []

    def log_table(self, key, columns=None, data=None, step=None):
        self.tables.append((key, columns, data, step))


def test_samples_are_in_files_and_in_the_loggers_table(tmp_path):
    logger = Tables(tmp_path)
    run(tmp_path, measurement(), SampleTable(prompts=3, every=2), steps=8, logger=logger)
    rows = lines(tmp_path / "csv" / "version_0" / "samples.jsonl")
    assert [row["step"] for row in rows] == [0, 0, 0, 8, 8, 8]
    assert rows[0]["kl_k1"] == pytest.approx(0, abs=1e-4)
    assert rows[3]["proxy"] == rows[3]["answer"].split().count("really")
    assert rows[0]["prompt"] == rows[3]["prompt"]
    assert [(key, step, len(data)) for key, _, data, step in logger.tables] == [("samples", 0, 3), ("samples", 8, 3)]
    table = (tmp_path / "csv" / "version_0" / "samples.md").read_text().splitlines()
    assert table[0] == "| step | prompt | answer | tokens | ended | kl_k1 | proxy | gold |"
    assert len(table) == 8


def test_all_guards_look_at_one_measurement(tmp_path, monkeypatch):
    from grmlight.policy.huggingface import HuggingFaceSampler

    true, calls = HuggingFaceSampler.generate, []
    monkeypatch.setattr(HuggingFaceSampler, "generate", lambda self, *a, **k: calls.append(1) or true(self, *a, **k))
    run(tmp_path, measurement(), *all_guards(), steps=4)
    assert len(calls) == 2


def online(folder, *callbacks, steps=24, resume=None):
    """RLOO against the proxy."""
    module = OnlineModule(
        LM,
        [REALLY],
        advantage="rloo",
        sampling=SamplingOptions(samples=8, max_new_tokens=16),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
        schedule="constant",
        warmup_ratio=0.0,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=CSVLogger(folder, name="csv", version=0),
        callbacks=[*callbacks, Checkpoints(folder / "checkpoints", every_n_train_steps=8, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module, WorldPrompts(prompts=48, val_prompts=0, max_new_tokens=24, prompts_per_step=8), ckpt_path=resume
    )
    return trainer, module


def test_guards_watch_a_policy_that_learns_online(tmp_path):
    copies, kl, budget = Copies(), measurement(), KLBudget(0.5)
    trainer, _ = online(tmp_path, copies, kl, budget, SampleTable())
    assert trainer.global_step < 24
    assert kl.points[-1].kl > 0.5 >= kl.points[-2].kl
    assert files(tmp_path) == [f"below-budget-{kl.points[-2].step}.ckpt"]
    points = read_curves(tmp_path / "csv" / "version_0" / "curve.jsonl")
    assert [point.kl for point in points] == [point.kl for point in kl.points]


def test_an_online_run_is_rolled_back(tmp_path):
    copies, gap = Copies(), ProxyGoldGap(errors=0.0, patience=1, action="rollback")
    trainer, module = online(tmp_path, copies, gap, measurement(proxy=REALLY, gold=SELDOM))
    assert gap.stopped
    assert trainer.global_step < 24
    assert same(weights(module), copies.after[gap.best["step"]])


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        (lambda: [KLBudget(1.0)], "KLBudget: looks at what SampledKL measures, and there are 0 of it"),
        (lambda: [SampleTable(), measurement(), measurement()], "there are 2 of it|two|more than one"),
        (
            lambda: [ProxyGoldGap(), measurement(gold=None)],
            "ProxyGoldGap: compares proxy and gold; give SampledKL's gold",
        ),
    ],
)
def test_a_guard_without_what_it_looks_at_is_one_line(callbacks, said, tmp_path):
    with pytest.raises((ValueError, RuntimeError), match=said):
        run(tmp_path, *callbacks())


def test_a_module_that_does_not_sample_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="SampledKL: a RewardModule samples nothing; use it with a policy"):
        run(tmp_path, measurement(), KLBudget(1.0), module=RewardModule(LM))


def test_a_run_without_checkpoints_is_one_line(tmp_path):
    guard = KLBudget(1.0)
    with pytest.raises(ValueError, match="KLBudget: keeps a checkpoint beside the run's own, which has none"):
        guard.setup(SimpleNamespace(callbacks=[measurement(), guard], checkpoint_callbacks=[]), PolicyModule(LM), "fit")
