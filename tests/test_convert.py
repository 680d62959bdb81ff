"""`grmlight export` in every format: the pad token that would move rewards, the notes, and what is refused."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from grmlight.cli import main
from grmlight.convert import convert, write_for_others
from grmlight.data import PrepareOptions
from grmlight.data.padding import NEW_TOKEN
from grmlight.export import Opened, load_options, model_folder
from grmlight.models import BackboneConfig, HeadConfig, LoraOptions, RewardModel, Scorer, load_reward_model
from tests import interop
from tests.models import twins
from tests.models.groups import mixed_groups
from tests.reference.packing import pack_groups
from tests.test_training_runs import write_material
from tests.tiny_models import PACKABLE, UNPACKABLE, tiny_reward_model
from tests.train_run import train

REPOSITORY = Path(__file__).parent.parent

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(autouse=True)
def _caches(tmp_path, monkeypatch):
    monkeypatch.setenv("GRMLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer):
    return twins.base_lm(tmp_path_factory.mktemp("base") / "lm", byte_tokenizer)


def opened(base, tokenizer, head="linear", trained="full"):
    return Opened(interop.make(base, None, head, trained), tokenizer, PrepareOptions())


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- the pad token ---


def trap(byte_tokenizer, kind):
    """A tokenizer whose padding other engines would take for the end of a text, or the other way around."""
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    if kind == "none":
        tokenizer.pad_token = None
    if kind in ("eos", "eos, none free"):
        tokenizer.pad_token = tokenizer.eos_token
    if kind == "eos, none free":
        # What might be taken for padding is part of every text.
        tokenizer.chat_template = "<|pad|>" + tokenizer.chat_template
    return tokenizer


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("kind", ["none", "eos", "eos, none free"])
def test_a_pad_token_that_would_move_the_reward_is_replaced(kind, head, base, byte_tokenizer, tmp_path):
    tokenizer = trap(byte_tokenizer, kind)
    out = tmp_path / "out"
    model = opened(base, tokenizer, head)
    notes = write_for_others(model, out, "classifier", {})
    added = kind == "eos, none free"
    expected = NEW_TOKEN if added else "<|pad|>"
    assert notes[0].startswith(f"pad token: {expected} ({'added' if added else 'a reserved token'}), because")
    exported, config = AutoTokenizer.from_pretrained(out), AutoConfig.from_pretrained(out)
    assert exported.pad_token == expected
    assert config.pad_token_id == exported.pad_token_id != exported.eos_token_id
    # The right-most token but padding, found apart, is the last token of each text.
    for text in interop.texts(exported):
        ids = exported(text, add_special_tokens=False)["input_ids"]
        assert ids[-1] == exported.eos_token_id
        assert exported.pad_token_id not in ids
    ours = interop.grmlight_scores(out, tmp_path)
    for found in (
        interop.transformers_scores(out), interop.transformers_scores(out, "left"), interop.pipeline_scores(out),
        interop.rule_scores(out), interop.rule_scores(out, last=True),
    ):  # fmt: skip
        assert_close(found, ours)


def test_with_padding_that_ends_texts_engines_do_read_another_reward(base, byte_tokenizer, tmp_path):
    """What the replacement prevents: without it, transformers' score is not ours."""
    tokenizer = trap(byte_tokenizer, "eos")
    write_for_others(opened(base, tokenizer), tmp_path / "out", "classifier", {})
    ours = interop.grmlight_scores(tmp_path / "out", tmp_path)
    tokenizer.save_pretrained(tmp_path / "out")
    entries = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps(entries | {"pad_token_id": tokenizer.eos_token_id}))
    assert (interop.transformers_scores(tmp_path / "out") - ours).abs().min() > 1e-3


def test_a_new_pad_token_gets_a_row_where_there_is_none(byte_tokenizer, tmp_path):
    tokenizer = trap(byte_tokenizer, "eos, none free")
    tokens = len(tokenizer)
    for tied in (False, True):
        config = {"vocab_size": tokens, "tie_word_embeddings": tied}
        for head in ("linear", "mlp"):
            model = tiny_reward_model("llama", head=HeadConfig(kind=head, width=8), config=config)
            out = tmp_path / f"{head}{tied}"
            write_for_others(Opened(model, tokenizer, PrepareOptions()), out, "classifier", {})
            rows = load_file(out / "model.safetensors")["model.embed_tokens.weight"]
            assert rows.shape[0] == tokens + 1 == AutoConfig.from_pretrained(out).vocab_size
            assert not rows[-1].any()
            assert_close(interop.transformers_scores(out), interop.grmlight_scores(out, tmp_path))


def test_an_adapter_cannot_add_a_row(byte_tokenizer, tmp_path):
    tokenizer = trap(byte_tokenizer, "eos, none free")
    torch.manual_seed(0)
    config = twins.llama_config()
    config.vocab_size = len(tokenizer)
    twins.LlamaForCausalLM(config).save_pretrained(tmp_path / "lm")
    model = RewardModel(BackboneConfig(name=str(tmp_path / "lm"), lora=LoraOptions(r=2)))
    with pytest.raises(ValueError, match="cannot add a pad token .* export it with --format classifier"):
        write_for_others(Opened(model, tokenizer, PrepareOptions()), tmp_path / "out", "adapter", {})
    assert not (tmp_path / "out").exists()


def test_a_model_that_reads_before_its_padding_keeps_that_padding(byte_tokenizer, tmp_path):
    twins.base_lm(tmp_path / "lm", byte_tokenizer)
    tokenizer = trap(byte_tokenizer, "eos")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=1, dtype=torch.float32)
    whole.config.pad_token_id = tokenizer.eos_token_id
    whole.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    expected = interop.transformers_scores(tmp_path / "rm")
    assert_close(interop.grmlight_scores(tmp_path / "rm", tmp_path), expected)
    convert(tmp_path / "rm", tmp_path / "again", "classifier")
    assert_close(interop.transformers_scores(tmp_path / "again"), expected)
    assert_close(interop.grmlight_scores(tmp_path / "again", tmp_path), expected)


# --- classifiers ---


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("architecture", [name for name in (*PACKABLE, *UNPACKABLE) if name != "llama4_text"])
def test_a_classifier_of_each_architecture_scores_as_the_model(architecture, head, tmp_path, byte_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    model = tiny_reward_model(architecture, head=HeadConfig(kind=head, width=8), config={"vocab_size": 320})
    out = tmp_path / architecture
    notes = write_for_others(Opened(model, tokenizer, PrepareOptions()), out, "classifier", {})
    standard = not (out / "modeling_grm.py").exists()
    constant = model.head.summary.bias.detach() if standard else 0.0
    assert any("vhead_bias" in note for note in notes) == standard
    before = Scorer(model).score(interop.chat_batch(byte_tokenizer, tmp_path)) - constant
    assert_close(interop.grmlight_scores(out, tmp_path), before)
    assert_close(interop.transformers_scores(out), before)


def test_an_architecture_whose_classifier_has_other_names_is_one_line(byte_tokenizer, tmp_path):
    model = tiny_reward_model("llama4_text", head=HeadConfig(width=8), config={"vocab_size": 320})
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    with pytest.raises(ValueError, match="classifier of llama4_text: the weights do not fit") as caught:
        write_for_others(Opened(model, tokenizer, PrepareOptions()), tmp_path / "out", "classifier", {})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_recentering_goes_along(base, byte_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    for head in ("linear", "mlp"):
        for layout in ("classifier", "adapter"):
            model = opened(base, tokenizer, head, "LoRA")
            model.model.reward_shift.fill_(0.7)
            model.model.reward_scale.fill_(2.5)
            out = tmp_path / f"{head}-{layout}"
            write_for_others(model, out, layout, {})
            before = Scorer(model.model).score(interop.chat_batch(byte_tokenizer, tmp_path))
            if head == "linear":
                before = before - json.loads((out / "config.json").read_text())["vhead_bias"]
            assert_close(interop.grmlight_scores(out, tmp_path), before)


def test_a_half_precision_classifier_keeps_its_mlp_head_in_float32(byte_tokenizer, base, tmp_path):
    model = RewardModel(BackboneConfig(name=str(base), dtype="bfloat16"), HeadConfig(width=8))
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    write_for_others(Opened(model, tokenizer, PrepareOptions()), tmp_path / "out", "classifier", {})
    loaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", trust_remote_code=True, dtype=torch.bfloat16
    )
    assert {parameter.dtype for parameter in loaded.v_head.parameters()} == {torch.float32}
    assert loaded.model.embed_tokens.weight.dtype == torch.bfloat16
    ids, mask = twins.padded(twins.SEQUENCES, 0)
    with torch.no_grad():
        assert loaded(input_ids=ids, attention_mask=mask).logits.shape == (3, 1)


def test_a_shipped_class_is_not_run_unless_it_is_allowed(byte_tokenizer, base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    write_for_others(opened(base, tokenizer, "mlp"), tmp_path / "out", "classifier", {})
    # transformers has a class of its own for this architecture, whose head would be random.
    for trust in ({}, {"trust_remote_code": False}):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=1, **trust)
    load_reward_model(tmp_path / "out")


# --- adapters ---


def test_plain_peft_reads_an_adapter(base, byte_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    for head in ("linear", "mlp"):
        write_for_others(opened(base, tokenizer, head, "LoRA"), tmp_path / head, "adapter", {})
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "mlp"))
    assert any("lora_A" in name for name in model.state_dict())
    assert json.loads((tmp_path / "linear/adapter_config.json").read_text())["modules_to_save"] == ["score"]
    assert set(load_file(tmp_path / "mlp/v_head.safetensors")) == {
        f"v_head.summary.{n}.{part}" for n in (0, 2) for part in ("weight", "bias")
    }


def test_an_adapter_may_lie_on_a_reward_model(byte_tokenizer, tmp_path):
    twins.grm(tmp_path / "grm", byte_tokenizer)
    model = load_reward_model(tmp_path / "grm", lora=LoraOptions(r=2))
    interop.wake_adapters(model)
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    write_for_others(Opened(model, tokenizer, PrepareOptions()), tmp_path / "lora", "adapter", {})
    batch = interop.chat_batch(byte_tokenizer, tmp_path)
    assert_close(Scorer(load_reward_model(tmp_path / "lora")).score(batch), Scorer(model).score(batch))


# --- the command ---


@pytest.fixture(scope="module")
def run(tmp_path_factory, byte_tokenizer, base):
    """A LoRA run with an MLP head on the base model."""
    folder = tmp_path_factory.mktemp("run")
    material = write_material(tmp_path_factory.mktemp("material"), byte_tokenizer)
    train(folder, *material, "--lora", "--backbone", base, "--epochs", "1", "--save_every", "4")
    return folder


def test_a_run_becomes_each_format_and_each_becomes_each(run, byte_tokenizer, tmp_path, capsys):
    source = run / "csv/version_0"
    (source / "checkpoints").exists() or shutil.copytree(run / "checkpoints", source / "checkpoints", symlinks=True)
    before = interop.grmlight_scores_of(model_folder(source), tmp_path)
    for layout in ("grm", "adapter", "classifier"):
        main(["export", str(source), "--out", str(tmp_path / layout), "--format", layout])
        assert f"model: {tmp_path / layout}" in capsys.readouterr().out
        assert load_options(tmp_path / layout) == load_options(model_folder(source))
        assert AutoTokenizer.from_pretrained(tmp_path / layout).chat_template
        assert_close(interop.grmlight_scores_of(tmp_path / layout, tmp_path), before)
    for given in ("adapter", "classifier"):
        for layout in ("grm", "classifier"):
            convert(tmp_path / given, tmp_path / f"{given}-{layout}", layout)
            assert_close(interop.grmlight_scores_of(tmp_path / f"{given}-{layout}", tmp_path), before)


def test_what_cannot_be_written_so_is_one_line(run, base, byte_tokenizer, tmp_path):
    grm, pairs = tmp_path / "grm", interop.pairs_file(tmp_path)
    convert(run / "csv/version_0", grm, "grm")
    for layout, given, message in (
        ("adapter", None, "has no adapters: it was trained in full, or they are merged"),
        ("grm", pairs, "only a classifier is distilled"),
        ("classifier", pairs, "holds 2 usable pairs; distillation needs at least 20"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            convert(grm, tmp_path / "out", layout, given)
        assert "\n" not in str(caught.value)
    convert(grm, tmp_path / "linear", "classifier", interop.pairs_file(tmp_path, 40))
    with pytest.raises(ValueError, match="its head is linear already"):
        convert(tmp_path / "linear", tmp_path / "out", "classifier", pairs)
    assert not (tmp_path / "out").exists()


def test_a_distilled_head_is_measured_and_says_so(run, byte_tokenizer, tmp_path, capsys):
    pairs = interop.pairs_file(tmp_path, 60)
    main(
        [
            "export",
            str(run / "csv/version_0"),
            "--out",
            str(tmp_path / "out"),
            "--format",
            "classifier",
            "--distill",
            pairs,
        ]
    )
    printed = capsys.readouterr().out
    stored = json.loads((tmp_path / "out/grmlight.json").read_text())["distilled"]
    assert stored["pairs"] == 12
    assert f"on 12 others both heads order {stored['agreement']:.1%} alike" in printed
    assert not (tmp_path / "out/modeling_grm.py").exists()
    assert_close(interop.transformers_scores(tmp_path / "out"), interop.grmlight_scores_of(tmp_path / "out", tmp_path))


def test_one_export_replaces_another(base, byte_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    out = tmp_path / "out"
    for head, layout in (("mlp", "adapter"), ("mlp", "classifier"), ("linear", "adapter"), ("linear", "classifier")):
        given = opened(base, tokenizer, head, "LoRA")
        write_for_others(given, out, layout, {})
        found = interop.grmlight_scores(out, tmp_path)
        assert_close(found[0] - found[1], _gap(given.model, byte_tokenizer, tmp_path))
    assert not [path for path in out.iterdir() if path.name.startswith(("adapter", "v_head", "modeling"))]


def _gap(model, tokenizer, work):
    before = Scorer(model).score(interop.chat_batch(tokenizer, work))
    return before[0] - before[1]


def test_the_authors_models_are_opened_with_the_authors_text(byte_tokenizer, tmp_path, caplog):
    twins.grm(tmp_path / "grm", byte_tokenizer)
    assert load_options(tmp_path / "grm") == PrepareOptions(paper_text=True)
    convert(tmp_path / "grm", tmp_path / "rm", "classifier")
    assert load_options(tmp_path / "rm").paper_text
    (tmp_path / "grm/grmlight.json").write_text(json.dumps({"prepare": {}}))
    with caplog.at_level(logging.WARNING, "grmlight"):
        load_options(tmp_path / "grm")
    assert "paper_text is off" in caplog.text


# --- serving ---


def test_an_exported_classifier_has_what_vllm_asks_for(base, byte_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    write_for_others(opened(base, tokenizer), tmp_path / "out", "classifier", {})
    entries = json.loads((tmp_path / "out/config.json").read_text())
    assert entries["architectures"] == ["LlamaForSequenceClassification"]
    assert AutoConfig.from_pretrained(tmp_path / "out").num_labels == 1
    assert entries["problem_type"] == "regression"
    assert entries["pad_token_id"] == 0
    assert "auto_map" not in entries
    assert "score.weight" in load_file(tmp_path / "out/model.safetensors")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_the_serving_file_is_yaml_of_flags():
    served = yaml.safe_load((REPOSITORY / "configs/serving/vllm.yaml").read_text())
    assert (served["runner"], served["convert"]) == ("pooling", "classify")
    assert all("_" not in key and not key.startswith("-") for key in served)
    page = (REPOSITORY / "docs/serving.md").read_text()
    assert "vllm serve --config configs/serving/vllm.yaml" in page
    assert served["model"] in page


def test_what_openrlhf_normalizes_by_is_in_the_head_of_the_classifier(byte_tokenizer, tmp_path):
    twins.openrlhf(tmp_path / "in", byte_tokenizer, normalize=True)
    convert(tmp_path / "in", tmp_path / "out", "classifier")
    batch = pack_groups(mixed_groups())
    source, exported = (Scorer(load_reward_model(tmp_path / name)).score(batch) for name in ("in", "out"))
    # The bias is left out of classifiers.
    assert_close(exported - exported[0], source - source[0])
    assert not {"normalize_reward", "mean", "std"} & json.loads((tmp_path / "out/config.json").read_text()).keys()


def test_an_export_replaces_folders_too(byte_tokenizer, tmp_path):
    twins.grm(tmp_path / "in", byte_tokenizer)
    (tmp_path / "in/onnx").mkdir()
    (tmp_path / "in/onnx/notes.txt").write_text("a")
    for _ in range(2):
        convert(tmp_path / "in", tmp_path / "out", "grm")
        load_reward_model(tmp_path / "out")
