"""Reward models that others have written score here as they do there."""

import json
import logging
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from grmlight.data import PrepareOptions
from grmlight.models import LoraOptions, RewardModel, Scorer, Signal, load_reward_model
from grmlight.models.foreign import by_grm_authors, warn_of_text
from tests.models import twins
from tests.reference.packing import pack_groups

pytest.importorskip("trl")
# peft asks transformers by a name that it has just renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PACK = [[twins.SEQUENCES[0], twins.SEQUENCES[1]], [twins.SEQUENCES[2]]]


def score(folder, **options):
    return Scorer(load_reward_model(folder, **options)).score(pack_groups(PACK))


def assert_close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected.detach(), rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer):
    return twins.base_lm(tmp_path_factory.mktemp("base") / "lm", byte_tokenizer)


@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("head", [{"layers": 1}, {"layers": 2}, {"linear": True}], ids=["mlp", "deep", "linear"])
def test_a_released_grm_scores_as_its_parts(head, binary, byte_tokenizer, tmp_path):
    expected = twins.grm(tmp_path / "grm", byte_tokenizer, binary=binary, **head)
    assert_close(score(tmp_path / "grm"), expected)
    assert load_reward_model(tmp_path / "grm").head_config.dropout == 0.1
    half = score(tmp_path / "grm", dtype="bfloat16")
    assert 0 < (half - expected).abs().max() < 0.1


def test_the_authors_adapter_folder_scores_on_the_base_that_it_names(base, byte_tokenizer, tmp_path):
    expected = twins.grm_lora(tmp_path / "lora", base, byte_tokenizer)
    model = load_reward_model(tmp_path / "lora")
    assert model.backbone_config.lora == LoraOptions(r=4, alpha=8, dropout=0.05, targets=tuple(sorted(twins.TARGETS)))
    assert model.backbone_config.name == str(base)
    assert_close(Scorer(model).score(pack_groups(PACK)), expected)


def test_an_adapter_takes_another_folder_of_its_base(base, byte_tokenizer, tmp_path):
    expected = twins.grm_lora(tmp_path / "lora", base, byte_tokenizer)
    settings = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    (tmp_path / "lora/adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": str(tmp_path / "moved")})
    )
    with pytest.raises(ValueError, match="base model cannot be read; write its folder to base_model_name_or_path"):
        load_reward_model(tmp_path / "lora")
    assert_close(score(tmp_path / "lora", base=str(base)), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("has_pad", [True, False], ids=["pad", "pad-is-eos"])
def test_trl_s_output_scores_as_transformers_reads_it(has_pad, base, byte_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    if not has_pad:
        tokenizer.pad_token = None
    twins.trl_output(tmp_path / "rm", base, tokenizer)
    pad = json.loads((tmp_path / "rm/config.json").read_text())["pad_token_id"]
    assert pad == (0 if has_pad else 1)
    model = load_reward_model(tmp_path / "rm")
    expected = twins.classifier_rewards(tmp_path / "rm")
    assert_close(Scorer(model).score(pack_groups(PACK)), expected)
    # Where padding is the end-of-text token, the reward is the one of the token before it.
    cut = [ids[:-1] if not has_pad and ids[-1] == 1 else ids for ids in twins.SEQUENCES]
    assert_close(twins.classifier_rewards(tmp_path / "rm", cut), expected)


@pytest.mark.filterwarnings("ignore")
def test_trl_s_adapter_keeps_its_head(base, byte_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    twins.trl_output(tmp_path / "rm", base, tokenizer, lora=True)
    assert not (tmp_path / "rm/config.json").exists()
    expected = twins.classifier_rewards(tmp_path / "rm", base=base, pad=0)
    model = load_reward_model(tmp_path / "rm")
    assert_close(Scorer(model).score(pack_groups(PACK)), expected)
    # It lies on a causal LM, so it can write too.
    assert model.has_language_head
    assert model(pack_groups(PACK), frozenset({Signal.LOGPS})).logps_N.isfinite().all()


def test_an_adapter_on_a_classifier_has_the_classifier_s_head(byte_tokenizer, tmp_path):
    torch.manual_seed(0)
    twins.base_lm(tmp_path / "lm", byte_tokenizer)
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=1)
    whole.save_pretrained(tmp_path / "rm")
    adapted = twins.woken(get_peft_model(whole, LoraConfig(r=2, target_modules=["q_proj"])))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "rm")
    adapted.save_pretrained(tmp_path / "lora")
    expected = twins.classifier_rewards(tmp_path / "lora", base=tmp_path / "rm")
    assert_close(score(tmp_path / "lora"), expected)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("called", ["score", "value_head", "reward"])
def test_openrlhf_s_output_scores_as_its_class(called, normalize, byte_tokenizer, tmp_path):
    expected = twins.openrlhf(tmp_path / "rm", byte_tokenizer, called, normalize)
    assert_close(score(tmp_path / "rm"), expected)
    load_reward_model(tmp_path / "rm").save_pretrained(tmp_path / "again")
    assert_close(score(tmp_path / "again"), expected)


def classifier(folder, byte_tokenizer, **entries):
    twins.base_lm(folder, byte_tokenizer, **entries)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def test_a_classifier_s_leftover_head_entries_mean_nothing(byte_tokenizer, tmp_path):
    folder = classifier(tmp_path / "rm", byte_tokenizer)
    expected = twins.classifier_rewards(folder)
    entries = json.loads((folder / "config.json").read_text())
    leftover = {"vhead_layer_type": "mlp", "vhead_num_layers": 1, "vhead_num_neurons": 1024}
    (folder / "config.json").write_text(json.dumps(entries | leftover))
    assert_close(score(folder), expected)


def test_a_classifier_with_a_bias_keeps_it(byte_tokenizer, tmp_path):
    folder = classifier(tmp_path / "rm", byte_tokenizer)
    expected = twins.classifier_rewards(folder) + 0.25
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"score.bias": torch.tensor([0.25])}, folder / "model.safetensors", {"format": "pt"})
    assert_close(score(folder), expected)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_classifier_has_log_probs_only_where_its_embeddings_give_them(tied, byte_tokenizer, tmp_path):
    folder = classifier(tmp_path / "rm", byte_tokenizer, tie_word_embeddings=tied)
    expected = score(folder)
    model = load_reward_model(folder)
    assert model.has_language_head == tied
    wanted = frozenset({Signal.CHOSEN_LOGPS})
    if tied:
        assert model(pack_groups(PACK), wanted).logps_N[0].isfinite()
    else:
        with pytest.raises(ValueError, match="came as a sequence classifier, without an LM head") as caught:
            model(pack_groups(PACK), wanted)
        assert "\n" not in str(caught.value)
    model.train_language_head(False)
    # The same when saved in our own layout, and when adapters are trained on it.
    model.save_pretrained(tmp_path / "own")
    assert ("lm_head.weight" in load_file(tmp_path / "own/model.safetensors")) is False
    own = load_reward_model(tmp_path / "own", lora=LoraOptions(r=2))
    assert own.has_language_head == tied
    assert_close(Scorer(own).score(pack_groups(PACK)), expected)


def test_a_reward_is_read_before_trailing_pads_wherever_they_lie(byte_tokenizer, tmp_path):
    folder = classifier(tmp_path / "rm", byte_tokenizer, pad_token_id=1)
    groups = [
        [[5, 6, 7, 8, 1, 1], [5, 6, 7, 1]],  # the second is all prompt but for its end
        [[1, 1, 9, 1]],
        [[4, 1], [4, 1, 1, 1]],
        [[30, 1, 31]],
    ]
    flat = [sequence for group in groups for sequence in group]
    expected = torch.cat([twins.classifier_rewards(folder, [sequence]) for sequence in flat])
    for packing in ("auto", "never"):
        model = load_reward_model(folder, packing=packing)
        assert model.packed == (packing == "auto")
        assert_close(Scorer(model).score(pack_groups(groups)), expected)
    # What was read so is kept in our own layout, and without it the rewards are others.
    model.save_pretrained(tmp_path / "own")
    assert_close(Scorer(RewardModel.from_pretrained(tmp_path / "own")).score(pack_groups(groups)), expected)
    model.skipped = None
    assert (Scorer(model).score(pack_groups(groups)) - expected).abs().max() > 1e-3


def edited(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def drop(name):
    return lambda tensors: tensors.pop(name)


def add(name, *shape):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("score.weight"), "neither v_head.* nor score.weight"),
        (drop("model.norm.weight"), "missing model.norm.weight"),
        (add("model.extra", 1), "unexpected model.extra"),
        (add("score.weight", 2, 32), "2 labels; a reward model has one"),
        (add("score.weight", 1, 30), "of another shape summary.weight"),
    ],
)
def test_a_classifier_that_does_not_fit_is_one_line(change, message, byte_tokenizer, tmp_path):
    folder = classifier(tmp_path / "rm", byte_tokenizer)
    edited(folder, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_reward_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            drop("model.layers.0.self_attn.q_proj.lora_A.default.weight"),
            "missing model.layers.0.self_attn.q_proj.lora_A",
        ),
        (add("model.layers.9.self_attn.q_proj.lora_A.default.weight", 4, 32), "unexpected model.layers.9"),
        (add("model.layers.0.self_attn.q_proj.lora_A.default.weight", 4, 48), "of another shape model.layers.0"),
        (drop("v_head.summary.0.weight"), "missing summary.0.weight"),
        (add("model.embed_tokens.weight", 3, 3), "also holds model.embed_tokens.weight"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(change, message, base, byte_tokenizer, tmp_path):
    twins.grm_lora(tmp_path / "lora", base, byte_tokenizer)
    edited(tmp_path / "lora", change)
    with pytest.raises(ValueError, match=message) as caught:
        load_reward_model(tmp_path / "lora")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"use_dora": True}, "an adapter with use_dora is not read; merge it"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["embed_tokens", "score"]}, "modules_to_save \\['embed_tokens'\\]"),
        ({"target_modules": ".*q_proj"}, "target_modules"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"target_modules": ["up_proj"]}, "unexpected model.layers"),
        ({"target_modules": ["c_attn"]}, "has no linear layers \\['c_attn'\\]"),
    ],
)
def test_an_adapter_that_cannot_be_read_is_one_line(entries, message, base, byte_tokenizer, tmp_path):
    twins.grm_lora(tmp_path / "lora", base, byte_tokenizer)
    path = tmp_path / "lora/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(ValueError, match=message) as caught:
        load_reward_model(tmp_path / "lora")
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_backbone_is_one_line(base, byte_tokenizer, tmp_path):
    twins.grm_lora(tmp_path / "lora", base, byte_tokenizer)
    config = twins.llama_config()
    config.num_hidden_layers = 3
    torch.manual_seed(0)
    twins.LlamaForCausalLM(config).save_pretrained(tmp_path / "deeper")
    with pytest.raises(ValueError, match=r"adapter .*lora on base model .*deeper.*missing model.layers.2") as caught:
        load_reward_model(tmp_path / "lora", base=str(tmp_path / "deeper"))
    assert "\n" not in str(caught.value)
    # Where the head does not fit either, the backbone is still what is wrong.
    config = twins.llama_config()
    config.hidden_size = 48
    twins.LlamaForCausalLM(config).save_pretrained(tmp_path / "wider")
    with pytest.raises(ValueError, match=r"adapter .*lora on base model .*wider.*of another shape model.layers.0"):
        load_reward_model(tmp_path / "lora", base=str(tmp_path / "wider"))


def test_an_adapter_without_a_head_is_one_line(base, byte_tokenizer, tmp_path):
    twins.grm_lora(tmp_path / "lora", base, byte_tokenizer)
    edited(tmp_path / "lora", lambda tensors: [tensors.pop(name) for name in list(tensors) if "v_head" in name])
    with pytest.raises(ValueError, match=r"no reward head: .*modules_to_save"):
        load_reward_model(tmp_path / "lora")


def test_an_adapter_goes_on_with_its_own_adapters(base, byte_tokenizer, tmp_path):
    twins.grm_lora(tmp_path / "lora", base, byte_tokenizer)
    for options in ({"lora": LoraOptions()}, {"frozen": True}):
        with pytest.raises(ValueError, match="has adapters of its own"):
            load_reward_model(tmp_path / "lora", **options)
    twins.grm(tmp_path / "grm", byte_tokenizer)
    with pytest.raises(ValueError, match="no adapter, so it takes no base"):
        load_reward_model(tmp_path / "grm", base=str(base))


def test_a_tokenizer_of_another_model_is_one_line(byte_tokenizer, tmp_path):
    folder = classifier(tmp_path / "rm", byte_tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer)
    tokenizer.add_tokens([f"word{n}" for n in range(40)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="has a token 339 and the model a vocabulary of 320"):
        load_reward_model(folder)


def test_several_outputs_are_refused(byte_tokenizer, tmp_path):
    twins.grm(tmp_path / "grm", byte_tokenizer, vhead_num_output=3)
    with pytest.raises(ValueError, match="3 outputs"):
        load_reward_model(tmp_path / "grm")


class Harm:
    def __reduce__(self):
        return print, ("this was run",)


def test_a_pickle_that_asks_for_code_is_refused(byte_tokenizer, tmp_path, capsys):
    twins.grm(tmp_path / "grm", byte_tokenizer, binary=True)
    (tmp_path / "grm/pytorch_model.bin").write_bytes(pickle.dumps({"v_head.summary.0.weight": Harm()}, protocol=2))
    with pytest.raises(ValueError, match="asks for code to be run, which is refused|cannot be read"):
        load_reward_model(tmp_path / "grm")
    assert "this was run" not in capsys.readouterr().out
    torch.save({"v_head.summary.0.weight": Harm()}, tmp_path / "grm/pytorch_model.bin")
    with pytest.raises(ValueError, match="asks for code to be run, which is refused"):
        load_reward_model(tmp_path / "grm")
    assert "this was run" not in capsys.readouterr().out


def test_the_authors_models_read_the_authors_text(byte_tokenizer, tmp_path, caplog):
    twins.grm(tmp_path / "grm", byte_tokenizer)
    load_reward_model(tmp_path / "grm").save_pretrained(tmp_path / "own")
    assert by_grm_authors(tmp_path / "grm")
    assert not by_grm_authors(tmp_path / "own")
    assert not by_grm_authors(tmp_path / "nothing")
    with caplog.at_level(logging.WARNING, "grmlight"):
        warn_of_text(tmp_path / "own", PrepareOptions())
        warn_of_text(tmp_path / "grm", PrepareOptions(paper_text=True))
        assert not [record for record in caplog.records if record.name == "grmlight"]
        warn_of_text(tmp_path / "grm", PrepareOptions())
    assert "paper_text is off" in caplog.text


def test_a_copy_of_the_authors_model_asks_for_no_code(byte_tokenizer, tmp_path):
    expected = twins.grm(tmp_path / "grm", byte_tokenizer)
    load_reward_model(tmp_path / "grm").save_pretrained(tmp_path / "own")
    assert "auto_map" not in json.loads((tmp_path / "own/config.json").read_text())
    assert_close(score(tmp_path / "own"), expected)
