"""The benchmarks compare equals: every variant of a loss computes that loss, at sizes that take no time."""

import dataclasses

import pytest
import torch

from benchmarks.train import gpu, material, report, scoring, shapes, steps

TINY = material.TINY | {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 64, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 2}
PAIRS = [(9, 5, 7), (4, 11, 6), (30, 8, 8)]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return material.make_material(tmp_path_factory.mktemp("material"), PAIRS, TINY)


def test_all_variants_of_a_loss_agree_at_every_step(tiny):
    runs = {name: variant(tiny, 3) for name, variant in steps.VARIANTS.items()}
    assert all(len(run.seconds) == 2 and len(run.losses) == 3 for run in runs.values())
    steps.check_same(runs)
    other = dataclasses.replace(runs["ours"], losses=[loss * 1.001 for loss in runs["ours"].losses])
    with pytest.raises(AssertionError):
        steps.check_same(runs | {"ours": other})


def test_the_gpu_variants_are_the_same_training(tiny):
    """In bf16, and with adapters, as on the GPU; only rounding tells them apart."""
    for lora in (False, True):
        losses = [variant(tiny, 1).losses[0] for name, variant in gpu._variants(lora).items() if name != "ours sft"]
        assert max(losses) - min(losses) < 0.02


def test_scoring_compares_equal_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "TINY", TINY)
    monkeypatch.setattr(scoring, "ANSWERS", 3)
    rows = scoring.scoring_rows(tmp_path, 1)
    assert [row.floor for row in rows] == [3.0, None]


def test_a_typical_batch_has_the_ratios_of_its_population():
    pairs = shapes.population(shapes.SHAPES["reference"])
    whole, batch = shapes.ceilings(pairs, 8), shapes.ceilings(shapes.typical_batch(pairs, 8), 8)
    assert batch.padded_to_shared == pytest.approx(whole.padded_to_shared, rel=0.05)
    assert whole.padded_to_shared == pytest.approx(2.92, rel=0.05)
    assert all(prompt + max(sides) <= 2048 for prompt, *sides in pairs)


def test_tables_say_what_misses_its_floor(tmp_path):
    rows = [
        report.Row("fast", 3.0, "x", 4.0, 5.0),
        report.Row("small", 0.1, "x", 0.4, 0.3, at_most=True),
        report.Row("free", 7.0, "s"),
    ]
    assert [row.verdict for row in rows] == ["**below the floor**", "target", ""]
    page, result = tmp_path / "page.md", tmp_path / "results" / "train.json"
    page.write_text("before\n<!-- train -->\nold\n<!-- /train -->\nafter\n")
    report.write_json("one", rows[:1], result)
    report.write_json("two", rows[1:], result)
    report.write_json("one", rows[:1], result)
    report.write_tables(page, result)
    text = page.read_text()
    assert text.startswith("before\n<!-- train -->")
    assert text.endswith("<!-- /train -->\nafter\n")
    assert "old" not in text
    assert text.count("| fast | 3 x | 4 | 5 | **below the floor** |") == 1
    assert "| free | 7 s |" in text


def test_nothing_is_claimed_for_a_gpu_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.gpu_rows(tmp_path) == []
    assert "no GPU here: not measured" in capsys.readouterr().out
