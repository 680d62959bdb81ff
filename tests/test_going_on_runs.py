"""Training that goes on from reward models of every layout in two processes: DDP and FSDP2 against one process."""

import json

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from tests.models import twins
from tests.test_training_runs import largest_difference, write_material
from tests.train_run import losses, train

pytestmark = [
    pytest.mark.slow,
    # peft asks transformers by a name that it has just renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

LAYOUTS = ("grm", "authors-lora", "openrlhf", "adapter-of-a-classifier")


@pytest.fixture(scope="module", params=LAYOUTS)
def arguments(request, tmp_path_factory, byte_tokenizer):
    """Of a run on from a reward model of a layout."""
    work = tmp_path_factory.mktemp("work")
    folder, base = work / request.param, twins.base_lm(work / "lm", byte_tokenizer)
    if request.param == "grm":
        twins.grm(folder, byte_tokenizer)
    elif request.param == "openrlhf":
        twins.openrlhf(folder, byte_tokenizer, normalize=True)
    elif request.param == "authors-lora":
        twins.grm_lora(folder, base, byte_tokenizer)
    else:
        whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        whole.save_pretrained(work / "rm")
        adapted = twins.woken(get_peft_model(whole, LoraConfig(r=2, target_modules=["q_proj"])))
        adapted.peft_config["default"].base_model_name_or_path = str(work / "rm")
        adapted.save_pretrained(folder)
    # Ranks draw their own dropout.
    set_entry(folder / "config.json", "summary_dropout_prob", 0.0)
    set_entry(folder / "adapter_config.json", "lora_dropout", 0.0)
    return [*write_material(work, byte_tokenizer), "--backbone", folder, "--keep", "--epochs", "1"]


def set_entry(path, name, value):
    if path.exists():
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    train(out, *arguments)
    return out


@pytest.mark.parametrize("strategy", [[], ["--fsdp"]], ids=["ddp", "fsdp2"])
def test_processes_go_on_with_the_losses_and_weights_of_one(strategy, arguments, alone, tmp_path):
    train(tmp_path, *arguments, *strategy, ranks=2)
    expected, found = losses(alone), losses(tmp_path)
    assert len(expected) == len(found) == 8
    for step, row in expected.items():
        for term in ("train/loss", "train/preference", "train/score_l2"):
            assert found[step][term] == pytest.approx(row[term], rel=1e-5), (step, term)
    assert largest_difference(tmp_path, alone) < 1e-5
