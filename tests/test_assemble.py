"""Ensembles of models that were trained one by one."""

import json
import shutil

import pytest
import torch

from grmlight.assemble import assemble
from grmlight.cli import main
from grmlight.data.options import PrepareOptions
from grmlight.export import save_model
from grmlight.models import EnsembleModel, HeadConfig, Scorer, load_reward_model
from tests.models.groups import mixed_groups
from tests.reference.packing import pack_groups
from tests.tiny_models import tiny_reward_model


@pytest.fixture(scope="module")
def made(tmp_path_factory, byte_tokenizer):
    """Three members, and reference pairs."""
    folder = tmp_path_factory.mktemp("made")
    for seed in range(3):
        write(folder / f"seed-{seed}", byte_tokenizer, seed=seed)
    rows = [{"prompt": f"why {i}?", "chosen": "so " * (1 + i % 4), "rejected": "not so"} for i in range(20)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRMLIGHT_CACHE", str(folder / "cache"))
        yield folder


def write(folder, tokenizer, options=None, width=16, seed=9, **config):
    head = HeadConfig(width=width, dropout=0.0)
    model = tiny_reward_model("llama", head=head, seed=seed, config={"vocab_size": 320} | config)
    save_model(model, folder, str(tokenizer), options or PrepareOptions(max_length=100))


def test_an_ensemble_of_trained_models_is_these_models_recentered(made, tmp_path, capsys):
    models = [made / f"seed-{seed}" for seed in range(3)]
    where = ["--reference", str(made / "pairs.jsonl"), "--out", str(tmp_path / "out")]
    main(["ensemble", *map(str, models), *where, "--aggregation", "wco"])
    assert "ensemble of 3" in capsys.readouterr().out
    found = load_reward_model(tmp_path / "out")
    assert isinstance(found, EnsembleModel)
    batch = pack_groups(mixed_groups())
    raw_KN = torch.stack([Scorer(load_reward_model(model)).score(batch) for model in models])
    recentered_KN = (raw_KN - found.reward_shift_K[:, None]) / found.reward_scale_K[:, None]
    torch.testing.assert_close(Scorer(found).score(batch), recentered_KN.amin(0), rtol=1e-5, atol=1e-5)
    for folder in (tmp_path / "out", tmp_path / "out/member-1"):
        assert json.loads((folder / "grmlight.json").read_text())["prepare"]["max_length"] == 100


def test_scores_of_an_ensemble_take_another_aggregation(made, tmp_path):
    models, pairs = [made / f"seed-{seed}" for seed in range(2)], str(made / "pairs.jsonl")
    assemble(models, tmp_path / "out", pairs)

    def score(*options):
        main(["score", str(tmp_path / "out"), pairs, "--out", str(tmp_path / "scores.jsonl"), *options])
        return [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]

    mean, least, unweighted = score(), score("--aggregation", "wco"), score("--aggregation=uwo", "--variance_weight=0")
    assert all(low["chosen"] < high["chosen"] for low, high in zip(least, mean, strict=True))
    assert unweighted == mean
    # Of two members the mean exceeds the minimum by their standard deviation.
    for low, high in zip(least, mean, strict=True):
        spread = ((high["chosen"] - low["chosen"]) ** 2 + (high["rejected"] - low["rejected"]) ** 2) / 2
        assert high["disagreement"] == pytest.approx(spread, rel=1e-4)
    # Over the reference pairs themselves every member has a mean of 0.
    assert sum(row["chosen"] + row["rejected"] for row in mean) == pytest.approx(0, abs=1e-4)
    arguments = ["score", str(models[0]), pairs, "--out", str(tmp_path / "s.jsonl"), "--aggregation", "mean"]
    with pytest.raises(SystemExit, match="is no ensemble; drop aggregation"):
        main(arguments)


@pytest.mark.parametrize(
    ("unlike", "message"),
    [
        ({"num_hidden_layers": 1}, "config.json's num_hidden_layers; train"),
        ({"hidden_size": 16, "head_dim": 8}, "config.json's hidden_size; train"),
        ({"width": 8}, "config.json's vhead_num_neurons; train"),
        ({"options": PrepareOptions(max_length=90)}, "preparation's max_length; train"),
    ],
)
def test_unlike_members_are_one_line_that_names_what_differs(unlike, message, made, byte_tokenizer, tmp_path):
    write(tmp_path / "other", byte_tokenizer, **unlike)
    with pytest.raises(ValueError, match="cannot be of one ensemble: they differ in") as caught:
        assemble([made / "seed-0", tmp_path / "other"], tmp_path / "out", str(made / "pairs.jsonl"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_members_that_read_text_otherwise_are_refused(made, tmp_path):
    shutil.copytree(made / "seed-1", tmp_path / "other")
    template = tmp_path / "other/chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", ""))
    with pytest.raises(ValueError, match="they differ in the chat template; train"):
        assemble([made / "seed-0", tmp_path / "other"], tmp_path / "out", str(made / "pairs.jsonl"))


def test_a_member_counts_once(made, tmp_path):
    (tmp_path / "link").symlink_to(made / "seed-0")
    with pytest.raises(ValueError, match="is given twice"):
        assemble([made / "seed-0", tmp_path / "link"], tmp_path / "out", str(made / "pairs.jsonl"))
    with pytest.raises(ValueError, match="size must be at least 2"):
        assemble([made / "seed-0"], tmp_path / "out", str(made / "pairs.jsonl"))


def test_ensembles_and_full_folders_are_refused(made, tmp_path):
    models, pairs = [made / f"seed-{seed}" for seed in range(2)], str(made / "pairs.jsonl")
    assemble(models, tmp_path / "one", pairs)
    assemble(models, tmp_path / "two", pairs)
    with pytest.raises(ValueError, match="no single reward model; give single ones, such as its members"):
        assemble([tmp_path / "one", tmp_path / "two"], tmp_path / "out", pairs)
    with pytest.raises(ValueError, match="exists and is not empty"):
        assemble(models, tmp_path / "one", pairs)


@pytest.mark.parametrize("kind", ["experts", "judge", "ensemble"])
def test_members_are_single_reward_models(kind, made, tmp_path):
    shutil.copytree(made / "seed-1", tmp_path / "other")
    (tmp_path / "other/grmlight.json").write_text(json.dumps({"kind": kind}))
    with pytest.raises(ValueError, match=f"is of the kind '{kind}', no single reward model"):
        assemble([made / "seed-0", tmp_path / "other"], tmp_path / "out", str(made / "pairs.jsonl"))
