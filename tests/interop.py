"""Engines that read an exported reward model, each by its own code, and rules computed apart from all of them.

`python -m tests.interop --page docs/interop.md` writes the measured matrix into the page, between its markers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import transformers
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TextClassificationPipeline

from grmlight.convert import write_for_others
from grmlight.data import PrepareOptions, prepare
from grmlight.data.loader import GroupLoader
from grmlight.distill import distill
from grmlight.export import Opened, load_options
from grmlight.models import BackboneConfig, HeadConfig, LoraOptions, RewardModel, Scorer, load_reward_model
from tests.models import twins
from tests.models.plain import wake_adapters

CHATS = [
    [{"role": "user", "content": "why is the red house green"}, {"role": "assistant", "content": "it was not so"}],
    [{"role": "user", "content": "why is the red house green"}, {"role": "assistant", "content": "the dog said that"}],
    [{"role": "user", "content": "who"}, {"role": "assistant", "content": "a cat and the dog, and the cat again"}],
    [{"role": "user", "content": "who"}, {"role": "assistant", "content": "no"}],
]

BEGIN, END = "<!-- matrix -->", "<!-- end of matrix -->"

COLUMNS = ("head", "trained", "--format", "grmlight", "transformers, right padded", "transformers, left padded",
           "transformers pipeline", "TRL's GRPO", "right-most token but pad", "reward-bench", "vLLM")  # fmt: skip

ROWS = [
    *(("linear", trained, layout) for trained, layout in (("full", "classifier"), ("LoRA", "classifier"))),
    ("linear", "LoRA", "adapter"),
    *(("mlp", trained, layout) for trained, layout in (("full", "classifier"), ("LoRA", "classifier"))),
    ("mlp", "LoRA", "adapter"),
    *(("mlp, distilled", trained, "classifier") for trained in ("full", "LoRA")),
    *(("any", trained, "grm") for trained in ("full", "LoRA")),
]


def pairs_file(work, count=0) -> str:
    """The chats as pairs; with `count`, so many other pairs."""
    path = work / f"chats-{count}.jsonl"
    pairs = [CHATS[:2], CHATS[2:]]
    rows = [{"prompt": a[:1], "chosen": a[1:], "rejected": b[1:]} for a, b in pairs]
    if count:
        rows = [
            {"prompt": f"who is {n}", "chosen": f"the cat and {n * 7}", "rejected": f"no dog {n}"} for n in range(count)
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat_batch(tokenizer, work):
    (batch,) = GroupLoader(prepare(pairs_file(work), str(tokenizer), PrepareOptions()).store, 64)
    return batch


def grmlight_scores(folder, work) -> torch.Tensor:
    """Our scorer, from text."""
    assert load_options(folder) == PrepareOptions()
    return grmlight_scores_of(folder, work)


def grmlight_scores_of(folder, work) -> torch.Tensor:
    """The same, whatever the folder says of texts."""
    return Scorer(load_reward_model(folder)).score(chat_batch(folder, work))


def load(folder):
    """The folder by transformers, and by peft where it is an adapter."""
    if not (folder / "adapter_config.json").exists():
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
        return model.eval()
    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = AutoTokenizer.from_pretrained(folder).pad_token_id
    return PeftModel.from_pretrained(model, str(folder)).eval()


def texts(tokenizer) -> list[str]:
    return [tokenizer.apply_chat_template(chat, tokenize=False) for chat in CHATS]


@torch.no_grad()
def transformers_scores(folder, side="right") -> torch.Tensor:
    """One padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    inputs = tokenizer(texts(tokenizer), padding=True, return_tensors="pt", add_special_tokens=False)
    inputs.pop("token_type_ids", None)
    return load(folder)(**inputs).logits[:, 0]


def pipeline_scores(folder, side="right", **options) -> torch.Tensor:
    """transformers' text-classification pipeline in batches; nothing says to it which function to apply.

    An adapter's base model knows of no regression, so there it is said.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    pipe = TextClassificationPipeline(model=load(folder), tokenizer=tokenizer, device=-1)
    if (folder / "adapter_config.json").exists():
        options["function_to_apply"] = "none"
    return torch.tensor([found["score"] for found in pipe(texts(tokenizer), batch_size=4, **options)])


def rewardbench_scores(folder) -> torch.Tensor:
    """As reward-bench's default calls transformers' pipeline: left padding, raw outputs, special tokens added."""
    return pipeline_scores(
        folder, side="left", function_to_apply="none", padding=True, truncation=False, max_length=512
    )


def trl_scores(folder, policy, work) -> torch.Tensor:
    """The reward of each chat as TRL's GRPOTrainer computes it where a model is the reward function."""
    import datasets
    import trl

    rows = datasets.Dataset.from_list([{"prompt": chat[:1]} for chat in CHATS])
    options = trl.GRPOConfig(
        str(work / "grpo"), bf16=False, use_cpu=True, report_to="none", num_generations=2, disable_tqdm=True,
        per_device_train_batch_size=2, model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=str(policy), reward_funcs=load(folder), args=options, train_dataset=rows,
        reward_processing_classes=AutoTokenizer.from_pretrained(folder),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    prompts, completions = [chat[:1] for chat in CHATS], [chat[1:] for chat in CHATS]
    inputs = [{"prompt": prompt} for prompt in prompts]
    return trainer._calculate_rewards(inputs, prompts, completions, [[0]] * len(CHATS))[:, 0]


@torch.no_grad()
def rule_scores(folder, last=False) -> torch.Tensor:
    """The head on the state of the right-most token that is not the pad token, row by row, found in Python.

    With `last`, on the last token, whatever it is: the pooling of engines that never pad.
    """
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load(folder)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder = getattr(inner, inner.base_model_prefix)
    head = inner.v_head if hasattr(inner, "v_head") else inner.score
    found = []
    for text in texts(tokenizer):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        row = ids if last else [*ids, tokenizer.pad_token_id, tokenizer.pad_token_id]
        place = len(row) - 1
        while not last and row[place] == tokenizer.pad_token_id:
            place -= 1
        states = decoder(torch.tensor([row[: place + 1]])).last_hidden_state
        found.append(head(states[0, -1]).item())
    return torch.tensor(found)


def make(base, tokenizer, head, trained, seed=0) -> RewardModel:
    """A reward model on a base folder, its adapters awake."""
    lora = LoraOptions(r=4, alpha=8) if trained == "LoRA" else None
    model = RewardModel(BackboneConfig(name=str(base), lora=lora), HeadConfig(kind=head, width=twins.WIDTH), seed)
    wake_adapters(model)
    return model


def measure(row, base, tokenizer, work) -> list[str]:
    """The cells of one row: the largest difference to our scorer on the same folder, or why there is none."""
    head, trained, layout = row
    model = make(base, tokenizer, head.split(",")[0] if head != "any" else "mlp", trained)
    out = work / "-".join(row).replace(", ", "-")
    if "distilled" in head:
        distill(model, prepare(pairs_file(work, 60), str(tokenizer), PrepareOptions()))
    before = Scorer(model).score(chat_batch(tokenizer, work))
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    if layout == "grm":
        model.save_pretrained(out, loaded)
        reason = "n/a: no classifier; use --format classifier"
        return [*row, gap(Scorer(load_reward_model(out)).score(chat_batch(out, work)), before), *[reason] * 7]
    write_for_others(Opened(model, loaded, PrepareOptions()), out, layout, {})
    ours = grmlight_scores(out, work)
    if "linear" in head or "distilled" in head:
        before = before - model.head.summary.bias.detach()
    first = [*row, gap(ours, before)]
    if layout == "adapter" and head == "mlp":
        return [*first, *["n/a: plain readers of adapters know no MLP head; use --format classifier"] * 7]
    cells = [
        transformers_scores(out), transformers_scores(out, "left"), pipeline_scores(out),
        trl_scores(out, base, work), rule_scores(out),
    ]  # fmt: skip
    bench = f"{installed('rewardbench')}; its pipeline call: {gap(rewardbench_scores(out), ours)}"
    return [*first, *(gap(found, ours) for found in cells), bench, vllm_cell(out, head, layout, ours)]


def vllm_cell(out, head, layout, ours) -> str:
    if head == "mlp":
        return "n/a: its classifiers have one linear layer; use --distill"
    if layout == "adapter":
        return "n/a: takes merged classifiers; use --format classifier"
    return f"{installed('vllm')}; its rule, the last token: {gap(rule_scores(out, last=True), ours)}"


def installed(name) -> str:
    try:
        return f"{version(name)}, not run"
    except PackageNotFoundError:
        return "not installed"


def gap(found, expected) -> str:
    return f"{(found - expected).abs().max().item():.0e}"


def matrix(tokenizer, work) -> str:
    """The table with the versions that made it."""
    base = twins.base_lm(work / "base", tokenizer)
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(measure(row, base, tokenizer, work))} |" for row in ROWS]
    names = ("torch", "transformers", "peft", "trl")
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in names)
    made = f"Made with Python {platform.python_version()}, {versions}, in float32 on a CPU:"
    return "\n".join([f"{made} `python -m tests.interop --page docs/interop.md --tokenizer DIR`.", "", *lines])


def write_page(page: Path, table: str) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the matrix of engines")
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer of at most 320 tokens")
    given = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRMLIGHT_CACHE"] = str(Path(folder) / "cache")
        write_page(given.page, matrix(given.tokenizer, Path(folder)))


if __name__ == "__main__":
    main()
